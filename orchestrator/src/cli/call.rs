//! `call`: one request to a service through the admin socket, so that no port needs to be open. The habits are curl's: the
//! body goes to standard output, and a 500 of the guest is an answer, not a failure, unless `--fail` is given.

use std::io::Read as _;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::client::escape;
use super::codes;
use super::exit::Exit;
use super::report::{Failure, Report};
use super::session::Session;
use super::source;
use crate::model::{ReplicaId, ServiceName};

/// Set by the daemon on every answer that came from a replica.
const REPLICA: HeaderName = HeaderName::from_static("x-narae-replica");
const REVISION: HeaderName = HeaderName::from_static("x-narae-revision");

/// `narae call`.
#[derive(Clone, Debug, Args)]
pub struct CallArgs {
    pub name: ServiceName,
    /// Path and query
    #[arg(default_value = "/")]
    pub path: String,
    /// Method; GET, or POST with a body
    #[arg(short = 'X', long = "method", value_name = "METHOD", alias = "request", value_parser = method)]
    pub method: Option<Method>,
    /// A header, may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body; @FILE reads a file, @- standard input
    #[arg(short, long, value_name = "BODY", allow_hyphen_values = true)]
    pub data: Option<String>,
    /// Ask this replica
    #[arg(long, value_name = "ID")]
    pub replica: Option<ReplicaId>,
    /// Ask this revision
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Print status and headers too
    #[arg(short, long)]
    pub include: bool,
    /// End with 1 when the answer's status is 400 or more
    #[arg(long)]
    pub fail: bool,
}

fn method(text: &str) -> Result<Method, String> {
    text.parse().map_err(|_| format!("`{text}` is no HTTP method"))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
    let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is no header name"))?;
    if name == REPLICA || name == REVISION {
        return Err(format!("`{name}` is set by --replica and --revision"));
    }
    if name == http::header::CONTENT_LENGTH
        || name == http::header::TRANSFER_ENCODING
        || name == http::header::CONNECTION
    {
        return Err(format!("`{name}` belongs to the connection and cannot be set"));
    }
    let value = value
        .trim()
        .parse()
        .map_err(|_| format!("the value of `{name}` is none of a header"))?;
    Ok((name, value))
}

/// Sends one request.
///
/// # Errors
/// No such service, the daemon is gone, or the answer breaks off.
pub async fn call(session: &Session, args: CallArgs) -> Result<Exit, Failure> {
    let body = args.data.as_deref().map(body).transpose()?;
    let client = session.client().await?;
    let method = args
        .method
        .clone()
        .unwrap_or(if body.is_some() { Method::POST } else { Method::GET });
    let mut request = client.request(method, &target(&args.name, &args.path), None, body.unwrap_or_default())?;
    // What is typed replaces what the client would send by itself (user-agent, host); typed twice, it is sent twice.
    for (name, _) in &args.headers {
        request.headers_mut().remove(name);
    }
    for (name, value) in &args.headers {
        request.headers_mut().append(name, value.clone());
    }
    if let Some(replica) = args.replica {
        request.headers_mut().insert(
            REPLICA,
            replica.to_string().parse().expect("`r` and digits are a header value"),
        );
    }
    if let Some(revision) = args.revision {
        request.headers_mut().insert(REVISION, revision.into());
    }
    let answer = client.raw(request, None).await?;
    let status = answer.status();
    if status.as_u16() >= 400 && !answer.headers().contains_key(REPLICA) {
        // No replica answered: the daemon's own words.
        let reason = answer
            .headers()
            .get(crate::proxy::X_NARAE_ERROR)
            .and_then(|v| v.to_str().ok());
        if let Some(reason) = reason.map(str::to_owned) {
            return unanswered(&args.name, &reason, answer).await;
        }
        return client.refuse(answer).await;
    }
    print(session, answer, args.include).await?;
    if args.fail && status.as_u16() >= 400 {
        session.note(&format!("{} answered {status}", args.name));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// The balancer answered for the service.
async fn unanswered(name: &ServiceName, reason: &str, answer: Response<Incoming>) -> Result<Exit, Failure> {
    let status = answer.status();
    let text = answer
        .into_body()
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let said = text.strip_prefix(status.as_str()).unwrap_or(&text).trim_start();
    Err(Failure::new(
        Exit::Failed,
        codes::DAEMON,
        format!("{name} gave no answer: {said} ({} {reason})", status.as_u16()),
    )
    .help(format!(
        "`narae status {name}` and `narae events --service {name}` tell why"
    )))
}

async fn print(session: &Session, answer: Response<Incoming>, include: bool) -> Result<(), Failure> {
    if include {
        session.raw(head(&answer).as_bytes())?;
    }
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Failure::new(Exit::Failed, codes::ANSWER, format!("the answer broke off: {e}"))
                .help("the guest failed after its head was sent; `narae events` tells why")
        })?;
        if let Ok(data) = frame.into_data() {
            session.raw(&data)?;
        }
    }
    Ok(())
}

fn head(answer: &Response<Incoming>) -> String {
    let status = answer.status();
    let mut out = format!(
        "{:?} {} {}\n",
        answer.version(),
        status.as_u16(),
        status.canonical_reason().unwrap_or("")
    );
    out.push_str(&header_lines(answer.headers()));
    out.push('\n');
    out
}

fn header_lines(headers: &HeaderMap) -> String {
    headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
        .collect()
}

/// The path on the admin API. What a URL cannot hold is escaped; what is escaped already stays.
fn target(name: &ServiceName, path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    // A fragment never travels.
    let path = path.split('#').next().unwrap_or("");
    format!(
        "/v1/services/{name}/call{slash}{}",
        escape(path, b"/?%-._~!$&'()*+,;=:@")
    )
}

fn body(data: &str) -> Result<Bytes, Failure> {
    let Some(file) = data.strip_prefix('@') else {
        return Ok(Bytes::copy_from_slice(data.as_bytes()));
    };
    let mut bytes = Vec::new();
    let read = if file == "-" {
        std::io::stdin()
            .lock()
            .take(source::MODULE_BYTES)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(source::MODULE_BYTES).read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes.into()),
        Err(e) => Err(Failure::of(
            Exit::Failed,
            vec![Report::new(
                codes::READ,
                format!("cannot read body `{file}`: {}", super::units::io_words(&e)),
            )],
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_escaped_once() {
        let name: ServiceName = "hello".parse().unwrap();
        let of = |p| target(&name, p);
        assert_eq!(of("x y?q=é"), "/v1/services/hello/call/x%20y?q=%C3%A9");
        assert_eq!(of("/a%20b#frag"), "/v1/services/hello/call/a%20b");
        assert_eq!(of("/"), "/v1/services/hello/call/");
        assert!(of("/x\r\nhost: evil").parse::<http::Uri>().is_ok());
    }

    #[test]
    fn headers_that_choose_the_replica_have_flags() {
        assert!(header("x-narae-replica: r1").is_err());
        assert!(header("content-length: 1").is_err() && header("Transfer-Encoding: chunked").is_err());
        assert!(header("no colon").is_err() && header("a b:c").is_err() && header("a:b\nc").is_err());
        assert_eq!(header("A: b:c").unwrap().1, "b:c");
    }

    #[test]
    fn a_body_that_cannot_be_read_is_told() {
        assert_eq!(body("@/none/such").unwrap_err().exit, Exit::Failed);
        assert_eq!(body("x=1").unwrap(), "x=1");
    }
}
