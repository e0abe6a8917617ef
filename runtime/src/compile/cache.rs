//! Compiled code on disk: named by what made it, under a MAC, least recently used out first.
//!
//! A file is the tag (32 bytes) and the code. It never loads code and never fails a compile: a bad file is a missing one.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

use aws_lc_rs::{constant_time, hmac};
use wasmtime::Engine;

use super::{CacheOptions, MAX_COMPILED_BYTES};
use crate::artifact::Digest;
use crate::engine::EngineKind;

const TAG_BYTES: usize = 32;
const EXTENSION: &str = "cwasm";
const TEMPORARY: &str = "tmp";
/// Part of what the MAC covers: a change of the format makes old files foreign.
const FORMAT: &[u8] = b"narae compiled code 1\0";

pub(super) struct Cache {
    dir: PathBuf,
    max_bytes: u64,
    key: hmac::Key,
}

/// The name says everything that the code depends on: the artifact, the engine, and through the engine's compatibility
/// hash the version of wasmtime, the target, the features of this processor and every setting that matters.
pub(super) fn file_name(digest: &Digest, kind: EngineKind, engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    let track = match kind {
        EngineKind::V02 => "02",
        EngineKind::V03 => "03",
    };
    format!("{}-{track}-{:016x}.{EXTENSION}", digest.hex(), hasher.finish())
}

impl Cache {
    pub(super) fn open(options: &CacheOptions, key: &[u8; 32]) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&options.dir)?;
        let cache = Self {
            dir: options.dir.clone(),
            max_bytes: options.max_bytes,
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        };
        for entry in fs::read_dir(&cache.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == TEMPORARY) {
                fs::remove_file(path)?;
            }
        }
        Ok(cache)
    }

    /// The code kept under this name. What is not exactly what this node wrote there is deleted.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        match self.read_checked(name) {
            Ok(code) => Some(code),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = name, error = %error, "throwing away a file of the compiled-code cache");
                self.remove(name);
                None
            }
        }
    }

    fn read_checked(&self, name: &str) -> io::Result<Vec<u8>> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        // Neither a link to elsewhere nor a pipe that never ends is followed.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
        let mut file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(self.dir.join(name))?;
        let meta = file.metadata()?;
        let most = MAX_COMPILED_BYTES + TAG_BYTES as u64;
        if !meta.is_file() || meta.len() > most || meta.len() <= TAG_BYTES as u64 {
            return Err(invalid("not a file of the right size"));
        }
        let mut tag = [0; TAG_BYTES];
        file.read_exact(&mut tag)?;
        let mut code = Vec::with_capacity(usize::try_from(meta.len()).map_err(io::Error::other)?);
        (&mut file).take(most).read_to_end(&mut code)?;
        constant_time::verify_slices_are_equal(&tag, self.tag(name, &code).as_ref())
            .map_err(|_| invalid("its code was not made by this node, or was changed"))?;
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        // Only the order of eviction depends on it.
        let _ = rustix::fs::futimens(
            &file,
            &rustix::fs::Timestamps {
                last_access: now,
                last_modification: now,
            },
        );
        Ok(code)
    }

    fn tag(&self, name: &str, code: &[u8]) -> hmac::Tag {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(FORMAT);
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(code);
        mac.sign()
    }

    /// Keeps code: whole or not at all, also over a power cut.
    pub(super) fn write(&self, name: &str, code: &[u8]) -> io::Result<()> {
        let size = (code.len() + TAG_BYTES) as u64;
        if size > self.max_bytes {
            return Ok(());
        }
        self.make_room(size, name)?;
        let temporary = self.dir.join(format!("{name}-{:016x}.{TEMPORARY}", fastrand::u64(..)));
        let written = (|| {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(self.tag(name, code).as_ref())?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&temporary, self.dir.join(name))?;
            File::open(&self.dir)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    pub(super) fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.dir.join(name)) {
            tracing::warn!(file = name, error = %error, "cannot remove a file of the compiled-code cache");
        }
    }

    /// Removes the least recently used files until `size` more bytes fit.
    fn make_room(&self, size: u64, except: &str) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another thread may have removed it meanwhile.
            let Ok(meta) = entry.metadata() else { continue };
            let ours = entry.path().extension().is_some_and(|e| e == EXTENSION);
            if ours && meta.is_file() && entry.file_name() != except {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total.saturating_add(size) <= self.max_bytes {
                break;
            }
            fs::remove_file(path)?;
            total = total.saturating_sub(len);
        }
        Ok(())
    }
}
