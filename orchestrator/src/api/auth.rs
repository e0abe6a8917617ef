//! Who may use the TCP door: a token, made at first start and kept 0600, compared in constant time; wrong ones are slowed.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::model::Millis;

/// So many wrong guesses a second get a 401, the rest a 429. The right token is always let in.
const GUESSES_PER_SECOND: u32 = 20;

/// The admin token's hash, and how many guesses were wrong lately.
pub struct Token {
    hash: [u8; 32],
    wrong: Mutex<(Millis, u32)>,
}

/// What a request's token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    Wrong,
    /// Wrong, and too many were: no word on this one.
    TooMany,
}

impl Token {
    /// Reads the token file, or makes it with 256 random bits and mode 0600.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => text,
            Ok(_) => make(path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(error),
        };
        Ok(Self::of(text.trim()))
    }

    /// A token that is already known.
    pub fn of(text: &str) -> Self {
        Self {
            hash: hash(text),
            wrong: Mutex::new((Millis(0), 0)),
        }
    }

    /// Judges one request's token at `now`.
    pub fn judge(&self, given: Option<&str>, now: Millis) -> Verdict {
        if given.is_some_and(|g| bool::from(hash(g).ct_eq(&self.hash))) {
            return Verdict::Right;
        }
        let mut wrong = self.wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now.since(wrong.0) >= Duration::from_secs(1) {
            *wrong = (now, 0);
        }
        wrong.1 = wrong.1.saturating_add(1);
        if wrong.1 > GUESSES_PER_SECOND {
            Verdict::TooMany
        } else {
            Verdict::Wrong
        }
    }
}

fn hash(text: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

fn make(path: &Path) -> std::io::Result<String> {
    let text: String = crate::secret_file::random()?
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    crate::secret_file::write(path, text.as_bytes())?;
    Ok(text)
}

/// True when a `Host` header names this loopback door, so that a page which made its own name point here gets nothing.
pub fn host_is_ours(host: Option<&str>, port: u16) -> bool {
    let Some(host) = host else { return false };
    let (name, given) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, rest)) => (name, rest.strip_prefix(':')),
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(n, p)| (n, Some(p))),
    };
    let port_fits = given.map_or(port == 80, |p| p.parse() == Ok(port));
    let loopback =
        name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    port_fits && loopback
}

/// True when there is no `Origin`, or it is this door itself.
pub fn origin_is_ours(origin: Option<&str>, port: u16) -> bool {
    origin.is_none_or(|origin| {
        origin
            .strip_prefix("http://")
            .is_some_and(|host| host_is_ours(Some(host), port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_token_gets_in_however_many_wrong_ones_came() {
        let token = Token::of("secret");
        for n in 0..100 {
            let verdict = token.judge(Some("guess"), Millis(5));
            assert_eq!(
                verdict,
                if n < GUESSES_PER_SECOND {
                    Verdict::Wrong
                } else {
                    Verdict::TooMany
                }
            );
        }
        assert_eq!(token.judge(Some("secret"), Millis(5)), Verdict::Right);
        assert_eq!(
            token.judge(None, Millis(1005)),
            Verdict::Wrong,
            "the next second counts anew"
        );
    }

    #[test]
    fn a_token_file_is_made_once_with_mode_0600_and_read_again() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        Token::open(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            Token::open(&path).unwrap().judge(Some(&text), Millis(0)),
            Verdict::Right
        );
        assert_eq!(text.len(), 64);
    }

    #[test]
    fn only_loopback_names_with_the_right_port_are_ours() {
        for good in ["127.0.0.1:7070", "localhost:7070", "LOCALHOST:7070", "[::1]:7070"] {
            assert!(host_is_ours(Some(good), 7070), "{good}");
        }
        for bad in [
            "evil.test:7070",
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost.evil.test:7070",
            "[::1",
            "10.0.0.1:7070",
            "",
        ] {
            assert!(!host_is_ours(Some(bad), 7070), "{bad}");
        }
        assert!(!host_is_ours(None, 7070));
        assert!(origin_is_ours(None, 7070) && origin_is_ours(Some("http://localhost:7070"), 7070));
        assert!(!origin_is_ours(Some("https://evil.test"), 7070) && !origin_is_ours(Some("null"), 7070));
    }
}
