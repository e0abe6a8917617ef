//! The HTTP client of the admin API, over the Unix socket or TCP on loopback. One connection for each request: the verbs
//! make few, and a daemon that restarts in between is found again. Knows statuses and bodies, no verb.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::args::Globals;
use super::codes;
use super::exit::Exit;
use super::find::{Endpoint, Surroundings, candidates};
use super::report::{Failure, Report};
use super::session::say;
use super::units::io_words;
use crate::model::views::Problems;

/// A local daemon accepts at once; longer means that it hangs.
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of an answer: a deploy inspects and compiles a module first, within the daemon's own 60 s.
const ANSWER: Duration = Duration::from_secs(120);
/// Largest JSON answer taken.
const ANSWER_BYTES: usize = 64 << 20;
/// Longest line of a stream taken; a log line is at most 8 KiB before escaping.
const LINE_BYTES: usize = 1 << 20;

/// A daemon that was reached once.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
    verbose: u8,
}

impl Client {
    /// Finds the daemon: the first place that accepts a connection.
    ///
    /// # Errors
    /// None does (exit 5), or one would but not for this user (exit 6).
    pub async fn find(globals: &Globals) -> Result<Self, Failure> {
        let host = globals.host.clone().filter(|h| !h.is_empty());
        let named = host.is_some();
        let places = candidates(&Surroundings::read(host))?;
        let mut denied = None;
        for endpoint in &places {
            let token = match endpoint {
                Endpoint::Unix(_) => None,
                Endpoint::Tcp(_) => globals.token_file.as_deref().map(read_token).transpose()?,
            };
            let client = Self {
                endpoint: endpoint.clone(),
                token,
                verbose: globals.verbose,
            };
            match client.connect().await {
                Ok(_) => return Ok(client),
                Err(error) => {
                    if globals.verbose > 0 {
                        say(&format!("{endpoint}: {error}"));
                    }
                    if named {
                        return Err(unreachable(endpoint, &error));
                    }
                    if error.kind() == ErrorKind::PermissionDenied && denied.is_none() {
                        denied = Some(unreachable(endpoint, &error));
                    }
                }
            }
        }
        Err(denied.unwrap_or_else(|| {
            let tried: Vec<String> = places.iter().map(ToString::to_string).collect();
            Failure::new(
                Exit::Unreachable,
                codes::UNREACHABLE,
                format!("no daemon answers at {}", tried.join(" or ")),
            )
            .help("start one with `narae serve`, or name it with `--host`; `narae run app.wasm` needs none")
        }))
    }

    /// The daemon behind this socket, without looking whether it answers.
    pub fn at_socket(path: &Path) -> Self {
        Self {
            endpoint: Endpoint::Unix(path.to_owned()),
            token: None,
            verbose: 0,
        }
    }

    /// A JSON answer to a request without a body.
    ///
    /// # Errors
    /// The daemon is gone, says no, or its answer is not of this shape.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json(Method::GET, path, None::<&()>).await
    }

    /// A JSON answer to a request with, or without, a JSON body.
    ///
    /// # Errors
    /// The daemon is gone, says no, or its answer is not of this shape.
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| not_understood(&self.endpoint, &e.to_string()))?,
            None => Vec::new(),
        };
        let answer = self.send(method, path, Some("application/json"), body.into()).await?;
        let bytes = self.collect(answer.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|e| not_understood(&self.endpoint, &e.to_string()))
    }

    /// A text answer.
    ///
    /// # Errors
    /// The daemon is gone or says no.
    pub async fn text(&self, path: &str) -> Result<String, Failure> {
        let answer = self.send(Method::GET, path, None, Bytes::new()).await?;
        let bytes = self.collect(answer.into_body()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// True when `path` answers 200 to HEAD, false when 404.
    ///
    /// # Errors
    /// The daemon is gone or says no.
    pub async fn exists(&self, path: &str) -> Result<bool, Failure> {
        let answer = self
            .raw(self.request(Method::HEAD, path, None, Bytes::new())?, Some(ANSWER))
            .await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(failure_of(&self.endpoint, status, &Bytes::new())),
        }
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// The daemon is gone or says no.
    pub async fn put_bytes(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        let answer = self.send(Method::PUT, path, Some("application/wasm"), bytes).await?;
        self.collect(answer.into_body()).await.map(drop)
    }

    /// Sends a text that is nobody else's, and takes a JSON answer.
    ///
    /// # Errors
    /// The daemon is gone, says no, or its answer is not of this shape.
    pub async fn put_value<T: DeserializeOwned>(&self, path: &str, value: Bytes) -> Result<T, Failure> {
        let answer = self
            .send(Method::PUT, path, Some("application/octet-stream"), value)
            .await?;
        let bytes = self.collect(answer.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|e| not_understood(&self.endpoint, &e.to_string()))
    }

    /// A request whose answer is of no interest beyond its status.
    ///
    /// # Errors
    /// The daemon is gone or says no.
    pub async fn act(&self, method: Method, path: &str) -> Result<(), Failure> {
        let answer = self.send(method, path, None, Bytes::new()).await?;
        self.collect(answer.into_body()).await.map(drop)
    }

    /// An answer in JSON Lines.
    ///
    /// # Errors
    /// The daemon is gone or says no.
    pub async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let answer = self.send(Method::GET, path, None, Bytes::new()).await?;
        Ok(Lines {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            endpoint: self.endpoint.clone(),
        })
    }

    /// Sends a request that others made; any status is an answer. `wait` bounds the time until its head.
    ///
    /// # Errors
    /// The daemon is gone, or does not answer in time.
    pub async fn raw(
        &self,
        request: Request<Full<Bytes>>,
        wait: Option<Duration>,
    ) -> Result<Response<Incoming>, Failure> {
        let what = format!("{} {}", request.method(), request.uri());
        let stream = self.connect().await.map_err(|e| unreachable(&self.endpoint, &e))?;
        let exchange = async {
            match stream {
                Wire::Unix(stream) => exchange(stream, request).await,
                Wire::Tcp(stream) => exchange(stream, request).await,
            }
        };
        let answer = match wait {
            Some(wait) => timeout(wait, exchange).await.map_err(|_| {
                Failure::new(
                    Exit::Unreachable,
                    codes::UNREACHABLE,
                    format!("{} does not answer {what}", self.endpoint),
                )
                .help("the daemon hangs or is overloaded; its own log tells more")
            })?,
            None => exchange.await,
        };
        let answer = answer.map_err(|e| lost(&self.endpoint, &e))?;
        if self.verbose > 0 {
            say(&format!("{what} -> {}", answer.status().as_u16()));
        }
        Ok(answer)
    }

    /// A request with this client's token and host.
    ///
    /// # Errors
    /// `path` is no path of a URL.
    pub fn request(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let host = match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp(authority) => authority,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, host)
            .header(http::header::USER_AGENT, concat!("narae/", env!("CARGO_PKG_VERSION")));
        if let Some(content_type) = content_type.filter(|_| !body.is_empty()) {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        if let (Endpoint::Tcp(_), Some(token)) = (&self.endpoint, &self.token) {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(body)).map_err(|e| {
            Failure::new(
                Exit::Usage,
                codes::VALUE,
                format!("cannot make a request of `{path}`: {e}"),
            )
        })
    }

    /// What an answer of at least 400 says.
    ///
    /// # Errors
    /// Always.
    pub async fn refuse<T>(&self, answer: Response<Incoming>) -> Result<T, Failure> {
        let status = answer.status();
        let body = self.collect(answer.into_body()).await.unwrap_or_default();
        Err(failure_of(&self.endpoint, status, &body))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let answer = self
            .raw(self.request(method, path, content_type, body)?, Some(ANSWER))
            .await?;
        if answer.status().as_u16() >= 400 {
            self.refuse(answer).await
        } else {
            Ok(answer)
        }
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, Failure> {
        let all = timeout(ANSWER, Limited::new(body, ANSWER_BYTES).collect()).await;
        match all {
            Ok(Ok(all)) => Ok(all.to_bytes()),
            Ok(Err(error)) => Err(not_understood(&self.endpoint, &error.to_string())),
            Err(_) => Err(not_understood(&self.endpoint, "it does not end")),
        }
    }

    async fn connect(&self) -> std::io::Result<Wire> {
        let connecting = async {
            Ok(match &self.endpoint {
                Endpoint::Unix(path) => Wire::Unix(UnixStream::connect(path).await?),
                Endpoint::Tcp(authority) => Wire::Tcp(TcpStream::connect(authority).await?),
            })
        };
        timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }
}

enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends by itself: when the sender and the body of the answer are dropped.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.send_request(request).await
}

/// An answer that comes line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    endpoint: Endpoint,
}

impl Lines {
    /// The next line as a value; none at the end.
    ///
    /// # Errors
    /// The stream broke, or a line is not of this shape.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.parse(&line).map(Some);
            }
            if self.buffer.len() > LINE_BYTES {
                return Err(not_understood(&self.endpoint, "a line of it is too long"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(lost(&self.endpoint, &error)),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => {
                    let line = std::mem::take(&mut self.buffer);
                    return self.parse(&line).map(Some);
                }
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(line).map_err(|e| not_understood(&self.endpoint, &e.to_string()))
    }
}

/// A path with a query: values are escaped, absent ones left out.
pub fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let mut first = true;
    for (key, value) in pairs {
        let Some(value) = value else { continue };
        out.push(if first { '?' } else { '&' });
        first = false;
        out.push_str(key);
        out.push('=');
        out.push_str(&escape(value, b"-._~"));
    }
    out
}

/// Percent-escapes everything but letters, digits and `keep`.
pub fn escape(text: &str, keep: &[u8]) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, b| {
        if b.is_ascii_alphanumeric() || keep.contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let refuse = |message: String| {
        Failure::new(Exit::NotPermitted, codes::NOT_PERMITTED, message)
            .help("the daemon makes the token at its first start, in its data directory")
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| refuse(format!("cannot read token file `{}`: {}", path.display(), io_words(&e))))?;
    let token = text.trim();
    if token.is_empty() || token.len() > 4096 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refuse(format!("`{}` holds no token", path.display())));
    }
    Ok(token.to_owned())
}

fn unreachable(endpoint: &Endpoint, error: &std::io::Error) -> Failure {
    if error.kind() == ErrorKind::PermissionDenied {
        return Failure::new(
            Exit::NotPermitted,
            codes::NOT_PERMITTED,
            format!("no permission to open {endpoint}"),
        )
        .help("your user must own the socket or be in its group; or use another daemon with `--host`");
    }
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such socket".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        ErrorKind::TimedOut => "it does not accept within 5 s".to_owned(),
        _ => io_words(error),
    };
    Failure::new(
        Exit::Unreachable,
        codes::UNREACHABLE,
        format!("cannot reach the daemon at {endpoint}: {why}"),
    )
    .help("start one with `narae serve`, or name it with `--host`")
}

fn lost(endpoint: &Endpoint, error: &hyper::Error) -> Failure {
    Failure::new(
        Exit::Unreachable,
        codes::UNREACHABLE,
        format!("lost the daemon at {endpoint}: {error}"),
    )
    .help("it was stopped or restarted; try again")
}

fn not_understood(endpoint: &Endpoint, why: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        codes::ANSWER,
        format!("the answer of {endpoint} is not understood: {why}"),
    )
    .help("compare versions with `narae version`")
}

/// What a refusing answer means: its own problems when it brings them.
pub fn failure_of(endpoint: &Endpoint, status: StatusCode, body: &[u8]) -> Failure {
    let exit = Exit::of_status(status.as_u16());
    if let Ok(problems) = serde_json::from_slice::<Problems>(body)
        && !problems.errors.is_empty()
    {
        // What two refusals of one status mean is in their codes.
        let exit = match problems.errors[0].code.as_str() {
            codes::CAPABILITIES => Exit::CapabilitiesWanted,
            codes::SECRET_IN_USE | codes::SECRET_VALUE => Exit::Failed,
            _ => exit,
        };
        return Failure::of(exit, problems.errors.into_iter().map(Report::of_view).collect());
    }
    let said = String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned();
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    let number = status.as_u16();
    match exit {
        Exit::NotPermitted => Failure::new(
            exit,
            codes::TOKEN,
            format!("{endpoint} says: not permitted ({number}){said}"),
        )
        .help("over TCP every call needs `--token-file` (or NARAE_TOKEN_FILE)"),
        Exit::Unknown => Failure::new(
            exit,
            codes::UNKNOWN,
            format!("{endpoint} does not know it ({number}){said}"),
        )
        .help("`narae list` shows what there is"),
        Exit::Changed => Failure::new(exit, codes::CHANGED, format!("changed underneath ({number}){said}")),
        _ => Failure::new(exit, codes::DAEMON, format!("{endpoint} answered {number}{said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::views::ProblemView;

    fn endpoint() -> Endpoint {
        Endpoint::Unix("/x.sock".into())
    }

    #[test]
    fn a_query_escapes_what_a_url_would_read_otherwise() {
        let query = with_query(
            "/v1/events",
            &[
                ("grep", Some("a b&c=é".into())),
                ("kind", None),
                ("tail", Some("5".into())),
            ],
        );
        assert_eq!(query, "/v1/events?grep=a%20b%26c%3D%C3%A9&tail=5");
    }

    #[test]
    fn the_daemon_s_own_words_are_kept() {
        let view = ProblemView {
            code: "E0042".into(),
            message: "no".into(),
            file: None,
            line: None,
            column: None,
            help: None,
            rendered: "error: no\n".into(),
        };
        let body = serde_json::to_vec(&Problems {
            schema: 1,
            errors: vec![view],
        })
        .unwrap();
        let failure = failure_of(&endpoint(), StatusCode::BAD_REQUEST, &body);
        assert_eq!(
            (failure.exit, failure.reports[0].styled.as_str()),
            (Exit::Invalid, "error: no")
        );
    }

    #[test]
    fn an_answer_without_words_still_says_what_to_do() {
        for (status, exit) in [
            (401, Exit::NotPermitted),
            (404, Exit::Unknown),
            (412, Exit::Changed),
            (500, Exit::Failed),
        ] {
            let failure = failure_of(&endpoint(), StatusCode::from_u16(status).unwrap(), b"<html>\x1b[2J");
            assert_eq!(failure.exit, exit);
            assert!(!failure.reports[0].styled.contains("\u{1b}[2J"));
        }
    }

    #[tokio::test]
    async fn a_missing_socket_ends_5_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let host = format!("unix:{}", dir.path().join("no.sock").display());
        let failure = Client::find(&Globals {
            host: Some(host),
            ..Globals::default()
        })
        .await
        .unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.reports[0].view.help.as_deref().unwrap().contains("narae serve"));
    }

    #[test]
    fn the_token_travels_over_tcp_and_never_over_the_socket() {
        let client = |endpoint| Client {
            endpoint,
            token: Some("secret".into()),
            verbose: 0,
        };
        let tcp = client(Endpoint::Tcp("127.0.0.1:7070".into())).request(Method::GET, "/v1/node", None, Bytes::new());
        let tcp = tcp.unwrap();
        assert_eq!(tcp.headers()["authorization"], "Bearer secret");
        assert_eq!(tcp.headers()["host"], "127.0.0.1:7070");
        let unix = client(endpoint())
            .request(Method::GET, "/v1/node", None, Bytes::new())
            .unwrap();
        assert!(!unix.headers().contains_key("authorization"));
    }

    #[test]
    fn a_token_file_holds_one_printable_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for bad in ["", "two words", "a\nb", "caf\u{e9}"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read_token(&path).unwrap_err().exit, Exit::NotPermitted, "{bad:?}");
        }
        std::fs::write(&path, "abc123\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "abc123");
        assert!(read_token(&dir.path().join("none")).is_err());
    }

    /// Answers one connection with these bytes.
    async fn daemon(answer: &'static [u8]) -> (Client, tempfile::TempDir) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            // The first connection only asks whether anybody is there.
            let _ = listener.accept().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        let globals = Globals {
            host: Some(format!("unix:{}", path.display())),
            ..Globals::default()
        };
        (Client::find(&globals).await.unwrap(), dir)
    }

    #[tokio::test]
    async fn lines_arrive_whole_however_the_stream_is_cut() {
        let (client, _dir) = daemon(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n9\r\n\":1}\n\n{\"a\r\n4\r\n\":2}\r\n0\r\n\r\n",
        )
        .await;
        let mut lines = client.lines("/v1/events").await.unwrap();
        assert_eq!(lines.next::<serde_json::Value>().await.unwrap().unwrap()["a"], 1);
        assert_eq!(lines.next::<serde_json::Value>().await.unwrap().unwrap()["a"], 2);
        assert_eq!(lines.next::<serde_json::Value>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_answer_of_another_shape_is_an_error_and_no_panic() {
        let (client, _dir) = daemon(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        let failure = client.get::<Problems>("/v1/node").await.unwrap_err();
        assert_eq!(
            (failure.exit, failure.reports[0].view.code.as_str()),
            (Exit::Failed, codes::ANSWER)
        );
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_up_ends_5() {
        let (client, _dir) = daemon(b"").await;
        assert_eq!(
            client.get::<Problems>("/v1/node").await.unwrap_err().exit,
            Exit::Unreachable
        );
    }
}
