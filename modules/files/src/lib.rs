//! Files in a volume, with Rust's own `std::fs`: nothing here knows that it is WebAssembly.
//!
//! The path of a request is a path below `/data` (or what `FILES_ROOT` says). GET reads a file or lists a directory, `?stat`
//! tells what it is; PUT writes, POST appends, DELETE removes; PUT of a path that ends in `/` makes a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

struct Files;

impl Guest for Files {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        let root = std::env::var("FILES_ROOT").unwrap_or_else(|_| "/data".to_owned());
        let decoded = String::from_utf8_lossy(&kit::percent_decode(&target.path)).into_owned();
        let path = format!("{root}{decoded}");
        let done = match request.method() {
            Method::Get if target.bytes("stat").is_some() => stat(&path),
            Method::Get => read(&path),
            Method::Put if path.ends_with('/') => fs::create_dir(&path).map(|()| Vec::new()),
            Method::Put => File::create(&path).and_then(|file| write(&request, file)),
            Method::Post => append(&path).and_then(|file| write(&request, file)),
            Method::Delete => remove(&path),
            _ => Err(ErrorKind::Unsupported.into()),
        };
        match done {
            Ok(body) => kit::respond(out, 200, body),
            Err(error) => kit::respond(out, status(&error), format!("{error}\n")),
        }
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_dir() {
        return fs::read(path);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}\n", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(names.concat().into())
}

fn stat(path: &str) -> io::Result<Vec<u8>> {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_dir() => "directory",
        kind if kind.is_symlink() => "link",
        _ => "file",
    };
    Ok(format!("{kind} {}\n", meta.len()).into())
}

fn append(path: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Streams the body into the file: what is not there yet is not held.
fn write(request: &IncomingRequest, mut file: File) -> io::Result<Vec<u8>> {
    let mut done = Ok(());
    let mut bytes = 0;
    kit::for_each_chunk(request, |chunk| {
        if done.is_ok() {
            done = file.write_all(chunk);
            bytes += chunk.len();
        }
    });
    done?;
    file.sync_all()?;
    Ok(format!("{bytes} bytes\n").into())
}

fn remove(path: &str) -> io::Result<Vec<u8>> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(Vec::new())
}

fn status(error: &io::Error) -> u16 {
    match error.kind() {
        ErrorKind::NotFound => 404,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => 403,
        ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => 409,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => 507,
        ErrorKind::Unsupported => 405,
        _ => 500,
    }
}

wasip2::http::proxy::export!(Files);
