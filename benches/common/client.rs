//! An HTTP/1.1 client that costs little: one thread, one write and one read per request. Understands just what the servers here
//! answer, and counts as an error whatever else comes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// What is sent, and how.
#[derive(Clone)]
pub struct Load {
    pub to: SocketAddr,
    pub request: Arc<[u8]>,
    pub connections: usize,
    pub pace: Pace,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Pace {
    /// The next request when the answer is there.
    KeepAlive,
    /// As `KeepAlive`, each on a connection of its own.
    Close,
    /// So many per second over all connections, whether or not the server keeps up.
    Rate(f64),
}

/// What one turn saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub per_second: f64,
    pub errors: u64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// The bytes of a request; a body makes it a POST.
pub fn request(host: &str, path: &str, close: bool, body: usize) -> Arc<[u8]> {
    let method = if body > 0 { "POST" } else { "GET" };
    let close = if close { "connection: close\r\n" } else { "" };
    let length = if body > 0 {
        format!("content-length: {body}\r\n")
    } else {
        String::new()
    };
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{close}{length}\r\n").into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes.into()
}

impl Load {
    /// Runs for `turn` on this thread.
    pub fn run(&self, turn: Duration) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let begin = Instant::now();
            let end = begin + turn;
            let tasks: Vec<_> = (0..self.connections)
                .map(|n| tokio::spawn(connection(self.clone(), n, begin, end)))
                .collect();
            let (mut took, mut errors) = (Vec::new(), 0);
            for task in tasks {
                let (of_one, failed) = task.await.unwrap();
                took.extend(of_one);
                errors += failed;
            }
            took.sort_unstable();
            let at = |q: f64| {
                took.get((took.len() as f64 * q) as usize)
                    .map_or(f64::NAN, |us| f64::from(*us))
            };
            Seen {
                per_second: took.len() as f64 / begin.elapsed().as_secs_f64(),
                errors,
                p50_us: at(0.5),
                p99_us: at(0.99),
            }
        })
    }
}

async fn connection(load: Load, n: usize, begin: Instant, end: Instant) -> (Vec<u32>, u64) {
    let (mut took, mut errors) = (Vec::with_capacity(1 << 14), 0);
    let mut stream: Option<TcpStream> = None;
    let mut buffer = vec![0; 128 << 10];
    let gap = match load.pace {
        Pace::Rate(rate) => Duration::from_secs_f64(load.connections as f64 / rate),
        _ => Duration::ZERO,
    };
    // Connections take their turns one after another, not all at once.
    let mut due = begin + gap.mul_f64(n as f64 / load.connections as f64);
    while Instant::now() < end {
        let mut since = Instant::now();
        if gap > Duration::ZERO {
            if since < due {
                // The timer's own lateness (a millisecond) is the client's, not the server's.
                tokio::time::sleep_until(due.into()).await;
                since = Instant::now();
            } else {
                since = due;
            }
            due += gap;
        }
        let answered = tokio::time::timeout_at(
            (end + Duration::from_secs(10)).into(),
            one(&load, &mut stream, &mut buffer),
        );
        if let Ok(Ok(())) = answered.await {
            took.push(u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX));
        } else {
            stream = None;
            errors += 1;
            tokio::task::yield_now().await;
        }
        if load.pace == Pace::Close {
            stream = None;
        }
    }
    (took, errors)
}

async fn one(load: &Load, stream: &mut Option<TcpStream>, buffer: &mut [u8]) -> std::io::Result<()> {
    if stream.is_none() {
        let new = TcpStream::connect(load.to).await?;
        new.set_nodelay(true)?;
        *stream = Some(new);
    }
    let open = stream.as_mut().expect("connected just now");
    if load.request.len() < 4096 {
        open.write_all(&load.request).await?;
        return answer(&mut open.split().0, buffer).await;
    }
    // A server may answer while it reads: both ways at once.
    let (mut read, mut write) = open.split();
    let (sent, came) = tokio::join!(send(&mut write, &load.request), answer(&mut read, buffer));
    sent.and(came)
}

async fn send(to: &mut WriteHalf<'_>, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await
}

/// Reads one answer to its end. It must be a 200 with a length, or chunked with a body of no digits.
async fn answer(from: &mut ReadHalf<'_>, buffer: &mut [u8]) -> std::io::Result<()> {
    let wrong = || std::io::Error::other("not the answer that was expected");
    let mut filled = 0;
    let head = loop {
        let n = from.read(&mut buffer[filled..]).await?;
        if n == 0 {
            return Err(wrong());
        }
        filled += n;
        if let Some(at) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200") {
        return Err(wrong());
    }
    if let Some(length) = length(&buffer[..head]) {
        let mut left = (head + length).checked_sub(filled).ok_or_else(wrong)?;
        while left > 0 {
            let n = from.read(buffer).await?;
            left = left.checked_sub(n).filter(|_| n > 0).ok_or_else(wrong)?;
        }
        return Ok(());
    }
    let mut tail = Vec::from(&buffer[head..filled]);
    while !tail.ends_with(b"0\r\n\r\n") {
        let n = from.read(buffer).await?;
        if n == 0 {
            return Err(wrong());
        }
        tail.extend_from_slice(&buffer[n.saturating_sub(8)..n]);
        tail.drain(..tail.len().saturating_sub(8));
    }
    Ok(())
}

fn length(head: &[u8]) -> Option<usize> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let name = line.get(..15)?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(())?;
        std::str::from_utf8(&line[15..]).ok()?.trim().parse().ok()
    })
}
