//! Verbs on secrets: set, list, delete. A value is read from standard input, a file or the keyboard and goes to the daemon; it is
//! never an argument, never printed and never logged.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use http::Method;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::session::{Session, now};
use super::table::{or_dash, render};
use super::units::{age_of, io_words};
use crate::model::redacted::wipe;
use crate::model::views::{List, SecretAnswer, SecretView};
use crate::secrets::{MAX_VALUE_BYTES, is_name};

/// `narae secret …`.
#[derive(Clone, Debug, Subcommand)]
pub enum SecretVerb {
    /// Set a secret from standard input, a file or the keyboard; services that read it are rolled to the new value
    Set {
        #[arg(value_name = "NAME")]
        name: String,
        /// Read the value from this file
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// Refused, with the reason
        #[arg(hide = true, value_name = "VALUE")]
        value: Vec<OsString>,
    },
    /// List names, versions and users; never values
    List,
    /// Delete a secret that no wanted or stable revision reads
    Delete {
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Runs a verb of the group.
///
/// # Errors
/// The value cannot be read or is none, the secret is used or not there, or the daemon is gone.
pub async fn secret(session: &Session, verb: SecretVerb) -> Result<Exit, Failure> {
    match verb {
        SecretVerb::Set { name, from_file, value } => set(session, &name, from_file.as_deref(), &value).await,
        SecretVerb::List => list(session).await,
        SecretVerb::Delete { name } => delete(session, &name).await,
    }
}

async fn set(session: &Session, name: &str, file: Option<&Path>, value: &[OsString]) -> Result<Exit, Failure> {
    if !value.is_empty() {
        let text = "a secret's value is never an argument: every user of this machine can read the process list";
        return Err(Failure::new(Exit::Usage, codes::VALUE, text).help(format!(
            "narae secret set {name} < FILE, or narae secret set {name} --from-file FILE; change a value that was typed here"
        )));
    }
    let path = path_of(name)?;
    let value = match file {
        Some(file) => from_file(file)?,
        None if std::io::stdin().is_terminal() => from_keyboard(session, name)?,
        None => read(&mut std::io::stdin().lock(), "standard input")?,
    };
    let client = session.client().await?;
    let answer: SecretAnswer = client.put_value(&path, value).await?;
    if session.format.is_json() {
        session.json(&answer)?;
        return Ok(Exit::Done);
    }
    session.print(&told(&answer))?;
    match answer.services.as_slice() {
        [] => session.next("narae secret list"),
        [first, ..] => session.next(&format!("narae rollout status {}", first.service)),
    }
    Ok(Exit::Done)
}

fn told(answer: &SecretAnswer) -> String {
    let SecretAnswer { name, version, .. } = answer;
    let mut out = if answer.changed {
        format!("secret {name} is set, version {version}\n")
    } else {
        format!("secret {name} has this value already, version {version}\n")
    };
    for one in &answer.services {
        out.push_str(&format!(
            "{} revision {} is being rolled out with it\n",
            one.service, one.revision
        ));
    }
    out
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let list: List<SecretView> = session.client().await?.get("/v1/secrets").await?;
    session.items(
        &list.items,
        "no secrets yet; `narae secret set NAME < FILE` makes the first",
        |s| s.name.clone(),
        |items, _| table(items, now()),
    )?;
    Ok(Exit::Done)
}

fn table(items: &[SecretView], at: jiff::Timestamp) -> String {
    let rows = items.iter().map(|s| {
        vec![
            s.name.clone().into(),
            s.version.to_string().into(),
            format!("{} ago", age_of(&s.changed_at, at)).into(),
            or_dash(Some(s.used_by.join(","))),
            if s.readable { "sealed" } else { "unreadable" }.into(),
        ]
    });
    render(&["SECRET", "VERSION>", "CHANGED", "USED BY", "STATE"], rows.collect())
}

async fn delete(session: &Session, name: &str) -> Result<Exit, Failure> {
    let path = path_of(name)?;
    let client = session.client().await?;
    session.confirm(&format!("delete secret {name}? its value cannot be brought back."))?;
    client.act(Method::DELETE, &path).await?;
    session.note(&format!("secret {name} is deleted"));
    session.next("narae secret list");
    Ok(Exit::Done)
}

fn path_of(name: &str) -> Result<String, Failure> {
    if is_name(name) {
        return Ok(format!("/v1/secrets/{name}"));
    }
    Err(Failure::new(
        Exit::Usage,
        codes::SECRET_NAME,
        format!("`{name}` is not a secret's name"),
    )
    .help("1 to 63 of a-z, 0-9 and `-`, for example `orders-db-password`"))
}

fn from_file(path: &Path) -> Result<Bytes, Failure> {
    let shown = path.display();
    let mut file = std::fs::File::open(path).map_err(|e| {
        Failure::new(
            Exit::Failed,
            codes::READ,
            format!("cannot read `{shown}`: {}", io_words(&e)),
        )
    })?;
    read(&mut file, &format!("`{shown}`"))
}

/// All of it, without one line end: `echo` and editors put one there.
fn read(input: &mut impl Read, shown: &str) -> Result<Bytes, Failure> {
    // Room for a line end of two bytes, and one more to see that it is too long.
    let limit = MAX_VALUE_BYTES + 3;
    let mut bytes = Vec::with_capacity(limit);
    let read = input.take(limit as u64).read_to_end(&mut bytes);
    read.map_err(|e| {
        Failure::new(
            Exit::Failed,
            codes::READ,
            format!("cannot read {shown}: {}", io_words(&e)),
        )
    })?;
    checked(bytes, shown)
}

fn checked(mut bytes: Vec<u8>, shown: &str) -> Result<Bytes, Failure> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    let wrong = match std::str::from_utf8(&bytes) {
        _ if bytes.is_empty() => "is empty".to_owned(),
        _ if bytes.len() > MAX_VALUE_BYTES => format!("is longer than {MAX_VALUE_BYTES} bytes"),
        Ok(text) if !text.contains('\0') => return Ok(bytes.into()),
        _ => "is no text in UTF-8: guests read a secret from their environment".to_owned(),
    };
    wipe(&mut bytes);
    Err(Failure::new(
        Exit::Failed,
        codes::SECRET_VALUE,
        format!("{shown} {wrong}"),
    ))
}

/// Asks twice, without showing what is typed.
fn from_keyboard(session: &Session, name: &str) -> Result<Bytes, Failure> {
    if session.globals.no_input {
        return Err(Failure::new(
            Exit::Usage,
            codes::CONFIRM,
            format!("the value of {name} would be asked for, and nobody may be asked"),
        )
        .help(format!("narae secret set {name} < FILE")));
    }
    let mut first = ask(&format!("value of {name}: "))?;
    let mut again = ask("again: ")?;
    let same = first == again;
    wipe(&mut again);
    if same {
        return checked(first, "the value");
    }
    wipe(&mut first);
    Err(Failure::new(
        Exit::Failed,
        codes::SECRET_VALUE,
        "the two are not the same; nothing was changed",
    ))
}

/// The terminal as it was, put back however this ends.
struct Silent(Termios);

impl Silent {
    fn begin() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        // Ctrl-C comes as a byte: a signal would end us with the echo off.
        silent.local_modes &= !(LocalModes::ECHO | LocalModes::ISIG | LocalModes::ICANON);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn ask(question: &str) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(
            Exit::Failed,
            codes::READ,
            format!("cannot read from the terminal: {}", io_words(&e)),
        )
    };
    let silent = Silent::begin().map_err(failed)?;
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{question}");
    let _ = err.flush();
    let typed = line(&mut std::io::stdin().lock());
    drop(silent);
    let _ = writeln!(err);
    typed.map_err(failed)?.ok_or_else(|| Failure::silent(Exit::Interrupted))
}

/// Keys up to the end of a line; none when it was interrupted.
fn line(keys: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut typed = Vec::with_capacity(MAX_VALUE_BYTES + 1);
    let mut key = [0];
    while keys.read(&mut key)? == 1 {
        match key[0] {
            b'\n' | b'\r' | 4 => break,
            3 => {
                wipe(&mut typed);
                return Ok(None);
            }
            8 | 127 => {
                // A whole character, not its last byte.
                while typed.pop().is_some_and(|b| b & 0xc0 == 0x80) {}
            }
            _ if typed.len() > MAX_VALUE_BYTES => {}
            byte => typed.push(byte),
        }
    }
    Ok(Some(typed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::views::SecretRollout;

    fn value(input: &[u8]) -> Result<Vec<u8>, String> {
        let read = read(&mut &*input, "standard input");
        read.map(|b| b.to_vec()).map_err(|f| f.reports[0].view.message.clone())
    }

    #[test]
    fn one_line_end_is_not_part_of_a_value_and_everything_else_is() {
        for (input, is) in [
            (&b"x"[..], &b"x"[..]),
            (b"x\n", b"x"),
            (b"x\r\n", b"x"),
            (b"x\n\n", b"x\n"),
            (b" x \n", b" x "),
            (b"a\nb\n", b"a\nb"),
        ] {
            assert_eq!(value(input).unwrap(), is);
        }
    }

    #[test]
    fn what_is_no_value_is_refused_without_showing_it() {
        let long = vec![b'q'; MAX_VALUE_BYTES + 2];
        for (input, why) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"qqq\0", "UTF-8"),
            (b"qqq\xff", "UTF-8"),
            (&long, "longer than 65536"),
        ] {
            let said = value(input).unwrap_err();
            assert!(said.contains(why) && !said.contains("qqq"), "{said}");
        }
        assert_eq!(value(&vec![b'q'; MAX_VALUE_BYTES]).unwrap().len(), MAX_VALUE_BYTES);
        assert_eq!(
            value(&[&vec![b'q'; MAX_VALUE_BYTES][..], b"\r\n"].concat())
                .unwrap()
                .len(),
            MAX_VALUE_BYTES
        );
    }

    #[test]
    fn keys_are_taken_as_a_terminal_sends_them() {
        let typed = |keys: &[u8]| line(&mut &*keys).unwrap();
        assert_eq!(typed(b"abc\nrest"), Some(b"abc".to_vec()));
        assert_eq!(typed(b"ab\x7fc\r"), Some(b"ac".to_vec()));
        assert_eq!(typed("a나\u{7f}b\n".as_bytes()), Some(b"ab".to_vec()));
        assert_eq!(typed(b"\x7f\x7f\n"), Some(Vec::new()));
        assert_eq!(typed(b"abc\x03"), None);
        assert_eq!(typed(b"abc\x04"), Some(b"abc".to_vec()));
    }

    #[test]
    fn secrets_are_shown_with_their_users_and_never_a_value() {
        let view = |name: &str, version, used_by: &[&str], readable| SecretView {
            name: name.into(),
            version,
            changed_at: "2026-11-24T04:50:00.000Z".into(),
            used_by: used_by.iter().map(|u| (*u).to_owned()).collect(),
            readable,
        };
        let items = [
            view("orders-db-password", 3, &["orders@11", "orders@12"], true),
            view("old", 1, &[], false),
        ];
        let text = table(&items, "2026-11-24T05:00:00Z".parse().unwrap());
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string(), @r"
        SECRET              VERSION  CHANGED  USED BY              STATE
        orders-db-password        3  10m ago  orders@11,orders@12  sealed
        old                       1  10m ago  -                    unreadable
        ");
        insta::assert_json_snapshot!("secret_list_json", List::of(items.to_vec()));
        let answer = SecretAnswer {
            schema: 1,
            name: "orders-db-password".into(),
            version: 4,
            changed: true,
            services: vec![SecretRollout {
                service: "orders".into(),
                revision: 13,
            }],
        };
        assert_eq!(
            told(&answer),
            "secret orders-db-password is set, version 4\norders revision 13 is being rolled out with it\n"
        );
        insta::assert_json_snapshot!("secret_set_json", answer);
    }
}
