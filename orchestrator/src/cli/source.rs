//! What the command line reads for the daemon, which never opens a path a client names: service files and modules. A module
//! is opened once, and what was read is what is hashed and sent.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use narae_runtime::Digest;
use rustix::fs::{Mode, OFlags};

use super::codes;
use super::report::Report;
use super::units::io_words;

/// Largest module taken, as the daemon's own limit.
pub const MODULE_BYTES: u64 = 64 << 20;
/// Largest service file taken; a real one is a few KiB.
const FILE_BYTES: u64 = 1 << 20;

/// A service file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    /// What relative paths in it start from.
    pub dir: PathBuf,
    pub text: String,
}

/// A module as it was read (and assembled, when it was text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    pub bytes: Bytes,
    pub digest: Digest,
}

/// The service files that `arguments` name: files, directories (their `*.toml`, in order of names), or `-`.
/// Beside those that could be read, why each of the others could not.
pub fn service_files(arguments: &[PathBuf]) -> (Vec<Source>, Vec<Report>) {
    let mut found = Vec::new();
    let mut reports = Vec::new();
    for argument in arguments {
        if argument.as_os_str() == "-" {
            match read_text(&mut std::io::stdin().lock(), "standard input") {
                Ok(text) => found.push(Source {
                    name: "<stdin>".into(),
                    dir: PathBuf::from("."),
                    text,
                }),
                Err(report) => reports.push(report),
            }
            continue;
        }
        let paths = if argument.is_dir() {
            match directory(argument) {
                Ok(paths) => paths,
                Err(report) => {
                    reports.push(report);
                    continue;
                }
            }
        } else {
            vec![argument.clone()]
        };
        for path in paths {
            match service_file(&path) {
                Ok(source) => found.push(source),
                Err(report) => reports.push(report),
            }
        }
    }
    (found, reports)
}

fn directory(dir: &Path) -> Result<Vec<PathBuf>, Report> {
    let shown = dir.display();
    let refuse = |e: std::io::Error| {
        Report::new(
            codes::READ,
            format!("cannot read directory `{shown}`: {}", io_words(&e)),
        )
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Report::new(codes::READ, format!("`{shown}` holds no service file"))
            .help("an application is a directory of `*.toml` files, one service in each"));
    }
    paths.sort();
    Ok(paths)
}

/// One service file.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn service_file(path: &Path) -> Result<Source, Report> {
    let name = path.display().to_string();
    if path.extension().is_some_and(|e| e == "wasm" || e == "wat") {
        return Err(
            Report::new(codes::READ, format!("`{name}` is a module, not a service file")).help(format!(
                "run it as it is with `narae run {name}`, or name it in a service file: module = \"{name}\""
            )),
        );
    }
    let (mut file, _) = open(path, "service file").map_err(|r| r.file(name.clone()))?;
    let text = read_text(&mut file, &format!("`{name}`"))?;
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    Ok(Source {
        name,
        dir: dir.to_owned(),
        text,
    })
}

/// The module at `path`, which is relative to `dir`.
///
/// # Errors
/// It is no regular file, too large, or text that does not assemble.
pub fn module(dir: &Path, path: &str) -> Result<ModuleFile, Report> {
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(
            Report::new(codes::LATER, format!("not supported yet: modules from `{scheme}://`"))
                .help("name a file, relative to the service file"),
        );
    }
    let whole = dir.join(path);
    let shown = whole.display().to_string();
    let (file, length) = open(&whole, "module")?;
    let too_large = |length: u64| {
        Report::new(
            codes::MODULE_SIZE,
            format!("module `{shown}` is {length} bytes, more than the {MODULE_BYTES} allowed"),
        )
        .help("strip debug information (`wasm-tools strip`), or split the component")
    };
    if length > MODULE_BYTES {
        return Err(too_large(length));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // The file may grow while it is read: the bound counts, not what the directory said.
    let read = file.take(MODULE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| {
        Report::new(
            codes::MODULE_FILE,
            format!("cannot read module `{shown}`: {}", io_words(&e)),
        )
    })?;
    if bytes.len() as u64 > MODULE_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    if whole.extension().is_some_and(|e| e == "wat") {
        bytes = assemble(&shown, &bytes)?;
    }
    let bytes = Bytes::from(bytes);
    Ok(ModuleFile {
        digest: Digest::of(&bytes),
        bytes,
    })
}

fn assemble(shown: &str, text: &[u8]) -> Result<Vec<u8>, Report> {
    let bytes = wat::parse_bytes(text).map_err(|mut e| {
        e.set_path(shown);
        let message = e.to_string();
        let first = message.lines().next().unwrap_or("malformed").to_owned();
        let report = Report::new(codes::WAT, format!("`{shown}` does not assemble: {first}"));
        match message.lines().find_map(|l| place(l.trim().strip_prefix("--> ")?)) {
            Some((line, column)) => report.at(shown, line, column),
            None => report.file(shown),
        }
    })?;
    Ok(bytes.into_owned())
}

/// Line and column at the end of `path:line:column`.
fn place(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.rsplit(':');
    let (column, line) = (parts.next()?, parts.next()?);
    Some((line.parse().ok()?, column.parse().ok()?))
}

/// Opens a regular file without waiting: a pipe or a device must not hold the program.
fn open(path: &Path, what: &str) -> Result<(File, u64), Report> {
    let shown = path.display();
    let code = if what == "module" {
        codes::MODULE_FILE
    } else {
        codes::READ
    };
    let refuse = |why: String| Report::new(code, format!("cannot read {what} `{shown}`: {why}"));
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = File::from(opened.map_err(|e| refuse(io_words(&e.into())))?);
    let meta = file.metadata().map_err(|e| refuse(io_words(&e)))?;
    if !meta.is_file() {
        let kind = if meta.is_dir() {
            "a directory"
        } else {
            "a pipe, socket or device"
        };
        return Err(refuse(format!("it is {kind}")).help("a regular file is needed"));
    }
    Ok((file, meta.len()))
}

fn read_text(from: &mut impl Read, what: &str) -> Result<String, Report> {
    let mut bytes = Vec::new();
    let read = from.take(FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Report::new(codes::READ, format!("cannot read {what}: {}", io_words(&e))))?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(Report::new(
            codes::READ,
            format!("{what} is over 1 MiB: that is no configuration file"),
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Report::new(codes::NOT_UTF8, format!("{what} is no text in UTF-8 (byte {at})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn every_file_that_cannot_be_read_is_told_at_once() {
        let dir = dir();
        std::fs::write(dir.path().join("c.toml"), "").unwrap();
        let arguments = ["a.toml", "b.toml", "c.toml"].map(|name| dir.path().join(name));
        let (found, reports) = service_files(&arguments);
        assert_eq!((found.len(), reports.len()), (1, 2));
    }

    #[test]
    fn a_directory_is_its_toml_files_in_order_of_names() {
        let dir = dir();
        for name in ["b.toml", "a.toml", "c.wasm"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let (files, _) = service_files(&[dir.path().to_owned()]);
        assert_eq!(
            files.iter().map(|f| f.text.as_str()).collect::<Vec<_>>(),
            ["a.toml", "b.toml"]
        );
        assert_eq!(files[0].dir, dir.path());
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(service_files(&[dir.path().join("empty")]).1.len(), 1);
    }

    #[test]
    fn a_module_in_place_of_a_service_file_is_told_apart() {
        let report = service_file(Path::new("app.wasm")).unwrap_err();
        assert!(report.view.help.unwrap().contains("narae run app.wasm"));
        let dir = dir();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, b"\0asm\xff").unwrap();
        assert!(service_file(&path).unwrap_err().view.message.contains("UTF-8"));
    }

    #[test]
    fn a_module_is_a_regular_file() {
        let dir = dir();
        assert!(module(dir.path(), ".").unwrap_err().view.message.contains("directory"));
        assert!(
            module(dir.path(), "/dev/zero")
                .unwrap_err()
                .view
                .message
                .contains("device")
        );
        assert!(module(dir.path(), "none.wasm").is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(module(dir.path(), "pipe").unwrap_err().view.message.contains("pipe"));
    }

    #[test]
    fn a_module_over_64_mib_is_refused_without_reading_it() {
        let dir = dir();
        let file = File::create(dir.path().join("big.wasm")).unwrap();
        file.set_len(MODULE_BYTES + 1).unwrap();
        assert!(
            module(dir.path(), "big.wasm")
                .unwrap_err()
                .view
                .message
                .contains("67108865 bytes")
        );
    }

    #[test]
    fn text_is_assembled_and_hashed_as_it_is_sent() {
        let dir = dir();
        std::fs::write(dir.path().join("a.wat"), "(component)").unwrap();
        let read = module(dir.path(), "a.wat").unwrap();
        assert_eq!(&read.bytes[..4], b"\0asm");
        assert_eq!(read.digest, Digest::of(&read.bytes));
        std::fs::write(dir.path().join("b.wat"), "(component\n  (oops))").unwrap();
        let report = module(dir.path(), "b.wat").unwrap_err();
        assert_eq!((report.view.line, report.view.column), (Some(2), Some(4)), "{report:?}");
    }

    #[test]
    fn modules_from_elsewhere_come_later() {
        let report = module(Path::new("."), "oci://registry.test/a:1").unwrap_err();
        assert!(report.view.message.starts_with("not supported yet"));
    }
}
