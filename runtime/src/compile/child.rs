//! Both ends of the pipe to the compiler child.
//!
//! Down: a header and the artifact. Up: a length and the compiled code on stdout, or one text on stderr. The child limits
//! itself before it reads the artifact; the parent trusts neither its time, nor its size, nor its words.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};
use wasmtime::Engine;

use super::{CompilerOptions, MAX_COMPILED_BYTES};
use crate::artifact::{Artifact, Kind, MAX_BYTES, adapt_command, printable};
use crate::engine::{EngineKind, base_config};
use crate::error::PrepareError;

const MAGIC: &[u8; 8] = b"narae c1";
const HEADER_BYTES: usize = 34;
/// Bytes of a child's words that are read, and that are shown.
const WORDS_READ: u64 = 16 << 10;
const WORDS_SHOWN: usize = 1024;
/// Threads of one child: more help little on artifacts of usual size, and each costs memory.
const MAX_THREADS: usize = 4;
/// Address space beyond the memory limit: the binary, stacks and reservations that are never touched.
const ADDRESS_SPACE_SLACK: u64 = 1 << 30;
/// The child's exit code when it refuses the artifact and says why.
const REFUSED: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: EngineKind,
    /// A preview 1 module that must be adapted first.
    core: bool,
    memory_bytes: u64,
    cpu_seconds: u64,
    wasm_bytes: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8] = u8::from(self.kind == EngineKind::V03);
        out[9] = self.core.into();
        out[10..18].copy_from_slice(&self.memory_bytes.to_le_bytes());
        out[18..26].copy_from_slice(&self.cpu_seconds.to_le_bytes());
        out[26..34].copy_from_slice(&self.wasm_bytes.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(le)
        };
        let flag = |at: usize| (bytes[at] < 2).then_some(bytes[at] == 1);
        let header = Self {
            kind: if flag(8)? { EngineKind::V03 } else { EngineKind::V02 },
            core: flag(9)?,
            memory_bytes: number(10),
            cpu_seconds: number(18),
            wasm_bytes: number(26),
        };
        (bytes[..8] == *MAGIC && header.wasm_bytes <= MAX_BYTES).then_some(header)
    }
}

/// The whole life of a compiler child: the binary's hidden verb calls it and exits with its answer.
///
/// Speaks only on stdin, stdout and stderr. Without a parent that speaks its protocol it says so and ends.
pub fn child_main() -> ExitCode {
    match compile_stdin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            // Nobody is left to tell if even this fails.
            let _ = io::stderr().write_all(printable(&words, WORDS_SHOWN).as_bytes());
            ExitCode::from(REFUSED)
        }
    }
}

fn compile_stdin() -> Result<(), String> {
    let mut stdin = io::stdin().lock();
    let mut header = [0; HEADER_BYTES];
    stdin
        .read_exact(&mut header)
        .map_err(|_| "this verb is narae's own compiler child")?;
    let header = Header::decode(&header).ok_or("this verb is narae's own compiler child")?;
    limit_self(&header)?;
    let mut wasm = Vec::with_capacity(usize::try_from(header.wasm_bytes).map_err(|e| e.to_string())?);
    stdin
        .take(header.wasm_bytes)
        .read_to_end(&mut wasm)
        .map_err(|e| e.to_string())?;
    if wasm.len() as u64 != header.wasm_bytes {
        return Err("the artifact was cut short".into());
    }
    if header.core {
        wasm = adapt_command(&wasm).map_err(|e| e.to_string())?;
    }
    let engine = Engine::new(&base_config(header.kind)).map_err(|e| format!("cannot make an engine: {e:#}"))?;
    let code = engine.precompile_component(&wasm).map_err(|e| format!("{e:#}"))?;
    drop(wasm);
    let mut stdout = io::stdout().lock();
    let write = |stdout: &mut io::StdoutLock<'_>| {
        stdout.write_all(&(code.len() as u64).to_le_bytes())?;
        stdout.write_all(&code)?;
        stdout.flush()
    };
    write(&mut stdout).map_err(|e| format!("cannot hand over the code: {e}"))
}

/// The child's own walls. Memory is limited as data (what was touched or could be), with a wider limit on addresses.
fn limit_self(header: &Header) -> Result<(), String> {
    let set = |resource: Resource, soft: u64, hard: u64| {
        // A service manager may have set less; nobody but root may raise it again.
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit {
            current: Some(soft.min(most)),
            maximum: Some(hard.min(most)),
        };
        rustix::process::setrlimit(resource, limit).map_err(|e| format!("cannot limit the compiler: {e}"))
    };
    set(Resource::Core, 0, 0)?;
    set(Resource::Cpu, header.cpu_seconds, header.cpu_seconds.saturating_add(1))?;
    set(Resource::Data, header.memory_bytes, header.memory_bytes)?;
    let addresses = header.memory_bytes.saturating_add(ADDRESS_SPACE_SLACK);
    set(Resource::As, addresses, addresses)?;
    // Both are courtesies to the threads that serve: if they fail, compiling is still right.
    let _ = rustix::process::nice(10);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Compiles in a child and gives its code. Dropping the future kills the child.
pub(super) async fn run(
    options: &CompilerOptions,
    artifact: &Artifact,
    kind: EngineKind,
) -> Result<Vec<u8>, PrepareError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / options.jobs.max(1)).clamp(1, MAX_THREADS);
    let header = Header {
        kind,
        core: artifact.kind == Kind::CommandCore,
        memory_bytes: options.memory_bytes,
        cpu_seconds: options
            .deadline
            .as_secs()
            .saturating_add(1)
            .saturating_mul(threads as u64),
        wasm_bytes: artifact.bytes.len() as u64,
    };
    let mut child = Command::new(&options.program)
        .args(&options.args)
        .env_clear()
        .env("RAYON_NUM_THREADS", threads.to_string())
        // Each arena of the allocator reserves 64 MiB of addresses.
        .env("MALLOC_ARENA_MAX", threads.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C is for us: the child dies with the future that waits for it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(PrepareError::Child)?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(PrepareError::Child(io::Error::other("no pipe to the compiler")));
    };
    let most = MAX_COMPILED_BYTES.min(options.memory_bytes);
    let talk = async {
        let ((), code, words) = tokio::join!(
            feed(stdin, header, artifact),
            read_code(stdout, most),
            read_words(stderr)
        );
        (code, words, child.wait().await)
    };
    let Ok((code, words, status)) = tokio::time::timeout(options.deadline, talk).await else {
        // Reaped here, so that nothing of it is left when the error is seen.
        let _ = child.kill().await;
        return Err(over_time(options.deadline));
    };
    let status = status.map_err(PrepareError::Child)?;
    match code {
        Ok(code) if status.success() => Ok(code),
        Ok(_) | Err(CodeError::Short) => Err(failure(status, &words, options)),
        Err(CodeError::TooLarge) => Err(PrepareError::CompileLimit {
            what: "the size of compiled code",
            limit: format!("{} MiB", most >> 20),
        }),
    }
}

/// A child that leaves early breaks the pipe; its words and status tell why.
async fn feed(mut stdin: ChildStdin, header: Header, artifact: &Artifact) {
    if stdin.write_all(&header.encode()).await.is_ok() {
        let _ = stdin.write_all(&artifact.bytes).await;
    }
    let _ = stdin.shutdown().await;
}

enum CodeError {
    Short,
    TooLarge,
}

async fn read_code(mut stdout: impl tokio::io::AsyncRead + Unpin, most: u64) -> Result<Vec<u8>, CodeError> {
    let len = stdout.read_u64_le().await.map_err(|_| CodeError::Short)?;
    if len > most {
        return Err(CodeError::TooLarge);
    }
    let mut code = Vec::with_capacity(usize::try_from(len).map_err(|_| CodeError::TooLarge)?);
    // One more than announced, so that a child that says too much is not taken for one that said enough.
    (&mut stdout)
        .take(len + 1)
        .read_to_end(&mut code)
        .await
        .map_err(|_| CodeError::Short)?;
    if code.len() as u64 == len {
        Ok(code)
    } else {
        Err(CodeError::Short)
    }
}

async fn read_words(mut stderr: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut words = Vec::new();
    let _ = (&mut stderr).take(WORDS_READ).read_to_end(&mut words).await;
    String::from_utf8_lossy(&words).into_owned()
}

fn over_time(deadline: Duration) -> PrepareError {
    PrepareError::CompileLimit {
        what: "compile_timeout",
        limit: format!("{deadline:?}"),
    }
}

/// What a child that gave no code died of.
fn failure(status: ExitStatus, words: &str, options: &CompilerOptions) -> PrepareError {
    let no_memory = [
        "memory allocation of",
        "Cannot allocate memory",
        "os error 12",
        "ThreadPoolBuildError",
    ];
    if no_memory.iter().any(|sign| words.contains(sign)) {
        return PrepareError::CompileLimit {
            what: "compile_memory",
            limit: format!("{} MiB", options.memory_bytes >> 20),
        };
    }
    if status.signal() == Some(rustix::process::Signal::XCPU.as_raw()) {
        return over_time(options.deadline);
    }
    let said = printable(words.trim(), WORDS_SHOWN);
    PrepareError::Compile(match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(REFUSED) && !said.is_empty() => said,
        (Some(code), _) => format!("compiler ended with code {code}: {said}"),
        (None, signal) => format!("compiler ended by signal {}: {said}", signal.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_sent() {
        let header = Header {
            kind: EngineKind::V03,
            core: true,
            memory_bytes: 1 << 40,
            cpu_seconds: 61,
            wasm_bytes: MAX_BYTES,
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    #[test]
    fn a_header_that_is_not_ours_is_refused() {
        let good = Header {
            kind: EngineKind::V02,
            core: false,
            memory_bytes: 1,
            cpu_seconds: 1,
            wasm_bytes: 1,
        }
        .encode();
        for (at, byte) in [(0, b'N'), (7, b'2'), (8, 2), (9, 0xff), (33, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Header::decode(&bad), None, "byte {at}");
        }
    }

    #[tokio::test]
    async fn code_that_is_shorter_or_longer_than_announced_is_none() {
        let cases: [(&[u8], bool); 4] = [(b"abc", true), (b"ab", false), (b"abcd", false), (b"", false)];
        for (sent, good) in cases {
            let mut pipe = 3u64.to_le_bytes().to_vec();
            pipe.extend_from_slice(sent);
            assert_eq!(read_code(&pipe[..], 10).await.is_ok(), good, "{sent:?}");
        }
        assert!(matches!(
            read_code(&u64::MAX.to_le_bytes()[..], 10).await,
            Err(CodeError::TooLarge)
        ));
    }
}
