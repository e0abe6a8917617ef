//! Every way out of a volume, and beyond its size: what a guest can ask of `wasi:filesystem` when it means no good.
//!
//! `/OPERATION?from=PATH&to=PATH&n=NUMBER` does one thing to the volumes and answers `ok` or the error code. Paths are relative
//! to the first volume; `from_in` and `to_in` name another by its number. The tests of the host call it from many sides at once.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::filesystem::preopens;
use wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags, filesystem_error_code,
};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::io::streams::StreamError;

/// One write.
const PIECE: usize = 64 * 1024;

struct Burglar;

type Done = Result<String, ErrorCode>;

impl Guest for Burglar {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        let body = match operate(&target) {
            Ok(said) => format!("ok {said}\n"),
            Err(code) => format!("{}\n", code.name()),
        };
        kit::respond(out, 200, body);
    }
}

fn operate(target: &kit::Target) -> Done {
    let mut volumes: Vec<Descriptor> = preopens::get_directories().into_iter().map(|(dir, _)| dir).collect();
    let volume = |key| usize::try_from(target.number(key).unwrap_or(0)).expect("a small number");
    let (a, b) = (volume("from_in"), volume("to_in"));
    if volumes.len() <= a.max(b) {
        return Err(ErrorCode::NoDevice);
    }
    let text = |key| target.text(key).unwrap_or_default();
    let (from, to, n) = (text("from"), text("to"), target.number("n").unwrap_or(1));
    let (dir, other) = (&volumes[a], &volumes[b]);
    let follow = PathFlags::SYMLINK_FOLLOW;
    let no = PathFlags::empty();
    match target.path.as_str() {
        "/read" => {
            let file = dir.open_at(follow, &from, OpenFlags::empty(), DescriptorFlags::READ)?;
            let (bytes, _) = file.read(100, 0)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "/stat" => {
            let stat = dir.stat_at(no, &from)?;
            Ok(format!("{:?} {}", stat.type_, stat.size))
        }
        "/create" => create(dir, &to).map(|_| String::new()),
        "/mkdir" => dir.create_directory_at(&to).map(|()| String::new()),
        "/rmdir" => dir.remove_directory_at(&from).map(|()| String::new()),
        "/unlink" => dir.unlink_file_at(&from).map(|()| String::new()),
        "/symlink" => dir.symlink_at(&from, &to).map(|()| String::new()),
        "/readlink" => dir.readlink_at(&from),
        "/link" => dir.link_at(no, &from, other, &to).map(|()| String::new()),
        "/rename" => dir.rename_at(&from, other, &to).map(|()| String::new()),
        "/size" => create(dir, &to)?.set_size(n).map(|()| String::new()),
        "/write-at" => create(dir, &to)?.write(b"far away", n).map(|n| n.to_string()),
        "/fill" => fill(dir, &to, n),
        "/fill-stream" => fill_stream(dir, &to, n, false),
        "/fill-append" => fill_stream(dir, &to, n, true),
        "/zeroes" => zeroes(dir, &to, n),
        "/many" => many(dir, &to, n),
        "/deep" => {
            let dir = volumes.swap_remove(a);
            deep(dir, n)
        }
        "/hold" => hold(dir, &to, n),
        "/descriptors" => descriptors(dir, &to, n),
        "/streams" => streams(dir, &to, n),
        "/open-loop" => open_loop(dir, &from, n),
        _ => Err(ErrorCode::Unsupported),
    }
}

fn create(dir: &Descriptor, path: &str) -> Result<Descriptor, ErrorCode> {
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    dir.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::CREATE, flags)
}

/// Writes until it has written `n` bytes or may not; says how many it wrote.
fn fill(dir: &Descriptor, path: &str, n: u64) -> Done {
    let file = create(dir, path)?;
    let piece = vec![b'x'; PIECE];
    let mut at = 0;
    while at < n {
        let now = piece.len().min(usize::try_from(n - at).unwrap_or(PIECE));
        match file.write(&piece[..now], at) {
            Ok(written) => at += written,
            Err(code) => return Ok(format!("{at} {}", code.name())),
        }
    }
    Ok(at.to_string())
}

fn fill_stream(dir: &Descriptor, path: &str, n: u64, append: bool) -> Done {
    let file = create(dir, path)?;
    let stream = if append {
        file.append_via_stream()?
    } else {
        file.write_via_stream(0)?
    };
    let piece = vec![b'y'; 4096];
    let mut at = 0;
    while at < n {
        match stream.blocking_write_and_flush(&piece) {
            Ok(()) => at += 4096,
            Err(error) => return Ok(format!("{at} {}", code_of(&error))),
        }
    }
    Ok(at.to_string())
}

fn zeroes(dir: &Descriptor, path: &str, n: u64) -> Done {
    let stream = create(dir, path)?.write_via_stream(0)?;
    let mut at = 0;
    while at < n {
        match stream.blocking_write_zeroes_and_flush(4096) {
            Ok(()) => at += 4096,
            Err(error) => return Ok(format!("{at} {}", code_of(&error))),
        }
    }
    Ok(at.to_string())
}

fn code_of(error: &StreamError) -> String {
    match error {
        StreamError::Closed => "closed".to_owned(),
        StreamError::LastOperationFailed(error) => {
            filesystem_error_code(error).map_or_else(|| error.to_debug_string(), |code| code.name().to_owned())
        }
    }
}

/// Empty files, until it may not; says how many there are.
fn many(dir: &Descriptor, prefix: &str, n: u64) -> Done {
    for i in 0..n {
        if let Err(code) = create(dir, &format!("{prefix}{i}")) {
            return Ok(format!("{i} {}", code.name()));
        }
    }
    Ok(n.to_string())
}

/// Directories in directories, each opened from the last: longer than any path.
fn deep(mut dir: Descriptor, n: u64) -> Done {
    for i in 0..n {
        let next = dir
            .create_directory_at("deeper")
            .and_then(|()| dir.open_at(PathFlags::empty(), "deeper", OpenFlags::DIRECTORY, DescriptorFlags::READ));
        match next {
            Ok(next) => dir = next,
            Err(code) => return Ok(format!("{i} {}", code.name())),
        }
    }
    Ok(n.to_string())
}

/// Fills files, takes their names away and keeps them open; says how much it holds so.
fn hold(dir: &Descriptor, path: &str, n: u64) -> Done {
    let mut held = Vec::new();
    let mut bytes = 0;
    for _ in 0..n {
        let file = match create(dir, path) {
            Ok(file) => file,
            Err(code) => return Ok(format!("{bytes} {}", code.name())),
        };
        match file.write(&vec![b'z'; PIECE], 0) {
            Ok(written) => bytes += written,
            Err(code) => return Ok(format!("{bytes} {}", code.name())),
        }
        dir.unlink_file_at(path)?;
        held.push(file);
    }
    Ok(bytes.to_string())
}

/// Keeps opening one file; says how often it could.
fn descriptors(dir: &Descriptor, path: &str, n: u64) -> Done {
    let mut held = Vec::new();
    for i in 0..n {
        match create(dir, path) {
            Ok(file) => held.push(file),
            Err(code) => return Ok(format!("{i} {}", code.name())),
        }
    }
    Ok(n.to_string())
}

/// The same with streams, whose descriptors are let go.
fn streams(dir: &Descriptor, path: &str, n: u64) -> Done {
    let mut held = Vec::new();
    for i in 0..n {
        match create(dir, path).and_then(|file| file.read_via_stream(0)) {
            Ok(stream) => held.push(stream),
            Err(code) => return Ok(format!("{i} {}", code.name())),
        }
    }
    Ok(n.to_string())
}

/// Reads a path again and again; says what it ever saw.
fn open_loop(dir: &Descriptor, path: &str, n: u64) -> Done {
    let mut seen = std::collections::BTreeMap::<String, u64>::new();
    for _ in 0..n {
        let read = dir
            .open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), DescriptorFlags::READ)
            .and_then(|file| file.read(100, 0));
        let said = match read {
            Ok((bytes, _)) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            Err(code) => code.name().to_owned(),
        };
        *seen.entry(said).or_default() += 1;
    }
    Ok(format!("{seen:?}"))
}

wasip2::http::proxy::export!(Burglar);
