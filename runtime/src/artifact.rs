//! Bytes -> a verified, inspected artifact: what kind of guest it is, what it imports and exports, its digest.
//!
//! Every byte is hostile: nothing here panics, and time and memory stay bounded for any file. It compiles nothing and
//! knows no engine; it knows which WebAssembly proposals narae's engines switch on, because it refuses the others.

mod adapt;
mod inspect;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

pub(crate) use adapt::command as adapt_command;
pub use inspect::{MAX_BYTES, features};

use serde::{Deserialize, Serialize};

/// SHA-256 of an artifact's bytes, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(hash.as_ref());
        Self(out)
    }

    /// The digest of a hash that was computed piece by piece.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits alone, for file names.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `sha256:` and 64 hex digits")]
pub struct DigestSyntax;

impl FromStr for Digest {
    type Err = DigestSyntax;

    fn from_str(text: &str) -> Result<Self, DigestSyntax> {
        let hex = text.strip_prefix("sha256:").ok_or(DigestSyntax)?.as_bytes();
        if hex.len() != 64 {
            return Err(DigestSyntax);
        }
        let nibble = |c: u8| {
            (c as char)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
                .ok_or(DigestSyntax)
        };
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the file is, read from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Component exporting `wasi:http/incoming-handler@0.2.x`.
    Http02,
    /// Component exporting `wasi:http/handler@0.3.x`.
    Http03,
    /// Component exporting `wasi:cli/run@0.2.x`.
    Command02,
    /// Component exporting `wasi:cli/run@0.3.x`.
    Command03,
    /// Preview 1 core module with `_start`; adapted to a component before it is compiled.
    CommandCore,
}

impl Kind {
    /// World `http` (else `command`).
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http02 | Self::Http03)
    }
}

/// A verified artifact.
#[derive(Clone)]
pub struct Artifact {
    pub digest: Digest,
    pub kind: Kind,
    /// Interfaces and functions it imports, `namespace:package/interface@version`, sorted.
    pub imports: Vec<String>,
    /// What it exports, sorted.
    pub exports: Vec<String>,
    /// The file as it was read.
    pub bytes: bytes::Bytes,
}

impl Artifact {
    /// Verifies and inspects these bytes: size and first bytes, then the structure against fixed limits, then full
    /// validation of every function under the proposals the engine for its kind allows.
    ///
    /// Runs for seconds on tens of megabytes: call it off the threads that serve.
    pub fn read(bytes: bytes::Bytes) -> Result<Self, ArtifactError> {
        let found = inspect::inspect(&bytes)?;
        Ok(Self {
            digest: Digest::of(&bytes),
            kind: found.kind,
            imports: found.imports,
            exports: found.exports,
            bytes,
        })
    }

    /// The component to compile: the file itself, or the preview 1 module inside its published adapter.
    pub fn component_bytes(&self) -> Result<Cow<'_, [u8]>, ArtifactError> {
        match self.kind {
            Kind::CommandCore => adapt::command(&self.bytes).map(Cow::Owned),
            _ => Ok(Cow::Borrowed(&self.bytes)),
        }
    }
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("digest", &self.digest)
            .field("kind", &self.kind)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// A name or text from a guest, made safe for a terminal and a log: printable ASCII, the rest escaped, at most
/// `max_bytes` long (an ellipsis tells that it was cut).
pub fn printable(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        let before = out.len();
        if c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        if out.len() > max_bytes {
            out.truncate(before);
            out.push_str("...");
            break;
        }
    }
    out
}

/// Why a file is not an artifact narae runs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// Over 64 MiB.
    #[error("module is {found} bytes, more than the {limit} allowed")]
    TooLarge { found: u64, limit: u64 },
    /// Not the wasm magic: says what it looks like (`gzip`, `text`, `ELF`, …).
    #[error("not a wasm binary: it looks like {looks_like}")]
    NotWasm { looks_like: &'static str },
    /// Malformed, or uses a proposal that is switched off.
    #[error("module is malformed: {0}")]
    Malformed(String),
    /// A well-formed wasm file of a kind narae does not run: what it exports, and what was expected.
    #[error("module exports {exports:?}; expected one of {expected:?}")]
    Unsupported {
        exports: Vec<String>,
        expected: &'static [&'static str],
    },
    /// More imports, exports, nested components, functions or instances than allowed.
    #[error("module has {found} {what}, more than the {limit} allowed")]
    TooMany { what: &'static str, found: u64, limit: u64 },
}
