//! Where the daemon may be: a pure function over what was typed and the environment. Opens nothing.

use std::path::{Path, PathBuf};

use super::codes;
use super::exit::Exit;
use super::report::Failure;

/// Bytes of a socket path the kernel keeps (108 with the closing zero).
const SOCKET_PATH_MAX: usize = 107;

/// The service manager's state directory.
const SYSTEM_SOCKET: &str = "/var/lib/narae/admin.sock";

/// One place to knock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `host:port`, loopback.
    Tcp(String),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// What of the surroundings matters.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `--host`, or `NARAE_HOST`: clap has put them in order.
    pub host: Option<String>,
    /// `NARAE_DATA_DIR`: where the user's own daemon keeps its state, when set.
    pub data_dir: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
    pub home: Option<PathBuf>,
}

impl Surroundings {
    /// Of this process.
    pub fn read(host: Option<String>) -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            host,
            data_dir: path("NARAE_DATA_DIR"),
            xdg_state_home: path("XDG_STATE_HOME"),
            home: path("HOME"),
        }
    }

    /// The directory a daemon started by this user keeps its state in, when nothing else is said.
    pub fn user_data_dir(&self) -> Option<PathBuf> {
        // The XDG specification: a relative path there is to be ignored.
        let state = self.xdg_state_home.clone().filter(|p| p.is_absolute());
        state
            .or_else(|| self.home.as_ref().map(|h| h.join(".local/state")))
            .map(|s| s.join("narae"))
    }
}

/// Where to look, first one first. An explicit host is the only place.
///
/// # Errors
/// The host is not one narae can talk to, or a socket path is too long.
pub fn candidates(around: &Surroundings) -> Result<Vec<Endpoint>, Failure> {
    if let Some(host) = &around.host {
        return Ok(vec![parse(host)?]);
    }
    let own = around
        .data_dir
        .clone()
        .or_else(|| around.user_data_dir())
        .map(|d| d.join("admin.sock"));
    own.into_iter()
        .chain([PathBuf::from(SYSTEM_SOCKET)])
        .map(|p| socket(&p))
        .collect()
}

fn parse(host: &str) -> Result<Endpoint, Failure> {
    let refuse = |message: String| Failure::new(Exit::Usage, codes::HOST, message);
    if let Some(path) = host.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(refuse("`unix:` names no socket".into()).help("write `unix:/path/to/admin.sock`"));
        }
        return socket(Path::new(path));
    }
    if host.starts_with("https://") || host.starts_with("ssh://") {
        let scheme = host.split_inclusive("://").next().unwrap_or(host);
        return Err(Failure::new(
            Exit::Failed,
            codes::LATER,
            format!("not supported yet: `--host {scheme}…`"),
        )
        .help("on another machine use `ssh -L 7070:127.0.0.1:7070 user@box` and `--host http://127.0.0.1:7070`"));
    }
    let Some(rest) = host.strip_prefix("http://") else {
        return Err(refuse(format!("`{host}` is no address of a daemon"))
            .help("write `unix:/path/to/admin.sock` or `http://127.0.0.1:7070`"));
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let authority: http::uri::Authority = rest
        .parse()
        .map_err(|_| refuse(format!("`{host}` is no address of a daemon")).help("write `http://127.0.0.1:7070`"))?;
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']');
    let loopback = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !loopback || authority.as_str().contains('@') {
        return Err(refuse(format!(
            "`{host}` is not on this machine; plain http:// is for loopback only"
        ))
        .help("the token would travel unprotected; use a tunnel (`ssh -L`)"));
    }
    let port = authority.port_u16().unwrap_or(7070);
    Ok(Endpoint::Tcp(format!("{}:{port}", authority.host())))
}

fn socket(path: &Path) -> Result<Endpoint, Failure> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(Failure::new(
            Exit::Usage,
            codes::SOCKET_PATH,
            format!(
                "the socket path `{}` is {length} bytes, more than the {SOCKET_PATH_MAX} the kernel keeps",
                path.display()
            ),
        )
        .help("use a shorter data directory, or a shorter symbolic link to it"));
    }
    Ok(Endpoint::Unix(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(host: Option<&str>) -> Surroundings {
        Surroundings {
            host: host.map(Into::into),
            home: Some("/home/a".into()),
            ..Surroundings::default()
        }
    }

    fn shown(around: &Surroundings) -> Vec<String> {
        candidates(around).unwrap().iter().map(ToString::to_string).collect()
    }

    fn refused(host: &str) -> Failure {
        candidates(&home(Some(host))).unwrap_err()
    }

    #[test]
    fn the_user_s_own_daemon_comes_before_the_service_manager_s() {
        assert_eq!(
            shown(&home(None)),
            [
                "unix:/home/a/.local/state/narae/admin.sock",
                "unix:/var/lib/narae/admin.sock"
            ]
        );
        let xdg = Surroundings {
            xdg_state_home: Some("/state".into()),
            ..home(None)
        };
        assert_eq!(shown(&xdg)[0], "unix:/state/narae/admin.sock");
        let relative = Surroundings {
            xdg_state_home: Some("state".into()),
            ..home(None)
        };
        assert_eq!(shown(&relative)[0], "unix:/home/a/.local/state/narae/admin.sock");
        let moved = Surroundings {
            data_dir: Some("/data".into()),
            ..xdg
        };
        assert_eq!(shown(&moved)[0], "unix:/data/admin.sock");
        assert_eq!(shown(&Surroundings::default()), ["unix:/var/lib/narae/admin.sock"]);
    }

    #[test]
    fn a_named_host_is_the_only_place() {
        assert_eq!(shown(&home(Some("unix:/x.sock"))), ["unix:/x.sock"]);
        assert_eq!(shown(&home(Some("unix:///x.sock"))), ["unix:/x.sock"]);
        assert_eq!(shown(&home(Some("unix:x.sock"))), ["unix:x.sock"]);
        assert_eq!(shown(&home(Some("http://127.0.0.1:7070"))), ["http://127.0.0.1:7070"]);
        assert_eq!(shown(&home(Some("http://localhost/"))), ["http://localhost:7070"]);
        assert_eq!(shown(&home(Some("http://[::1]:1"))), ["http://[::1]:1"]);
    }

    #[test]
    fn a_token_never_leaves_the_machine_unprotected() {
        for host in ["http://10.0.0.1:7070", "http://example.test", "http://user@127.0.0.1:1"] {
            assert_eq!(refused(host).exit, Exit::Usage, "{host}");
        }
    }

    #[test]
    fn hosts_that_come_later_are_refused_by_name() {
        for host in ["https://hub.example.test", "ssh://user@box"] {
            let failure = refused(host);
            assert_eq!(
                (failure.exit, failure.reports[0].view.code.as_str()),
                (Exit::Failed, codes::LATER)
            );
            assert!(failure.reports[0].view.message.starts_with("not supported yet"));
        }
    }

    #[test]
    fn a_socket_path_over_107_bytes_is_an_error_with_a_hint() {
        let fits = format!("unix:/{}", "x".repeat(106));
        assert_eq!(shown(&home(Some(&fits))), std::slice::from_ref(&fits));
        let failure = refused(&format!("{fits}x"));
        assert!(failure.reports[0].view.message.contains("108 bytes"));
        assert!(failure.reports[0].view.help.is_some());
        let deep = Surroundings {
            home: Some(format!("/{}", "h".repeat(100)).into()),
            ..home(None)
        };
        assert!(candidates(&deep).is_err());
    }

    #[test]
    fn nonsense_is_no_host() {
        for host in ["", "box", "unix:", "http://", "http://a b", "tcp://127.0.0.1:1"] {
            assert!(!refused(host).reports.is_empty(), "{host}");
        }
    }
}
