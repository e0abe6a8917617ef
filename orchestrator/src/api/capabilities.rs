//! The question before a deploy that wants more than the last one: what is new, who is asked, and who said yes.

use axum::http::StatusCode;

use super::Api;
use super::answer::Refused;
use super::modules::Inspected;
use crate::config::Code;
use crate::model::record::Accepted;
use crate::model::views::{CapabilityView, ProblemView};
use crate::model::{Revision, RevisionNumber, ServiceSpec};
use crate::plan::DesiredService;
use crate::plan::capabilities::{Capabilities, Change, asked, diff};

/// Who makes a request: what the door knows about the other end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Of the process at the other end of the socket.
    Uid(u32),
    /// Whoever holds the admin token.
    Token,
    Unknown,
}

impl Caller {
    /// `uid 1000 (ana)`, `the admin token`. Reads the user's name where the system keeps it.
    pub fn name(self) -> String {
        match self {
            Self::Uid(uid) => {
                let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
                user_of(&users, uid).map_or_else(|| format!("uid {uid}"), |name| format!("uid {uid} ({name})"))
            }
            Self::Token => "the admin token".to_owned(),
            Self::Unknown => "somebody".to_owned(),
        }
    }
}

/// From the lines of passwd(5).
fn user_of(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        let plain = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic());
        (id.parse() == Ok(uid) && plain).then_some(name)
    })
}

/// What a deploy wants that was not there before.
pub(super) struct Wish {
    changes: Vec<Change>,
    /// What must be accepted, as it is shown.
    pub asked: Vec<String>,
    /// The revision it is more than.
    beyond: Option<RevisionNumber>,
}

/// Compares `spec` with its module's imports to the stable and the wanted revision: both were let through.
pub(super) async fn wish(api: &Api, current: Option<&DesiredService>, spec: &ServiceSpec, module: &Inspected) -> Wish {
    let mut before = Vec::new();
    let mut settings = Vec::new();
    for revision in current.into_iter().flat_map(last) {
        // One whose module cannot be read any more had no imports that we know of.
        let inspected = api.modules.inspected(&api.blobs, revision.digest).await.ok();
        let imports = inspected.iter().flat_map(|i| &i.imports).map(String::as_str);
        before.push(Capabilities::of(&revision.spec, imports));
        settings.push(revision.spec.rollout.capabilities);
    }
    let new = Capabilities::of(spec, module.imports.iter().map(String::as_str));
    let changes = diff(&before.iter().collect::<Vec<_>>(), &new);
    let asked = asked(&settings, spec.rollout.capabilities, &changes)
        .into_iter()
        .map(ToString::to_string)
        .collect();
    let beyond = current.map(|s| s.record.stable.unwrap_or(s.record.wanted));
    Wish { changes, asked, beyond }
}

fn last(service: &DesiredService) -> Vec<&Revision> {
    let record = &service.record;
    let wanted = Some(record.wanted).filter(|w| record.stable != Some(*w));
    let numbers = record.stable.into_iter().chain(wanted);
    numbers
        .filter_map(|n| service.revisions.get(&n))
        .map(|r| &**r)
        .collect()
}

impl Wish {
    pub fn views(&self) -> Vec<CapabilityView> {
        self.changes.iter().map(view).collect()
    }

    /// Passes when nothing is asked or `accept` was given; then says who accepted what.
    ///
    /// # Errors
    /// The list, and the command that accepts it.
    pub fn settle(
        &self,
        spec: &ServiceSpec,
        file: &str,
        accept: bool,
        caller: Caller,
    ) -> Result<Option<Accepted>, Refused> {
        if self.asked.is_empty() {
            return Ok(None);
        }
        if accept {
            let (by, what) = (caller.name(), self.asked.clone());
            return Ok(Some(Accepted { by, what }));
        }
        let beyond = self
            .beyond
            .map_or_else(|| "before".to_owned(), |n| format!("revision {n}"));
        let first = format!("`{}` wants more than {beyond}", spec.name);
        let typed = if file == "<stdin>" { "-" } else { file };
        let help = format!("nothing was changed; to let it through: narae deploy {typed} --accept");
        let mut rendered = format!("error: {first}");
        for what in &self.asked {
            rendered.push_str(&format!("\n  + {what}"));
        }
        rendered.push_str(&format!("\n  = help: {help}"));
        let view = ProblemView {
            code: Code::CapabilitiesWanted.as_str().to_owned(),
            message: format!("{first}: {}", self.asked.join(", ")),
            file: Some(file.to_owned()),
            line: None,
            column: None,
            help: Some(help),
            rendered,
        };
        Err(Refused {
            status: StatusCode::CONFLICT,
            errors: vec![view],
        })
    }
}

/// A change as the API shows it.
pub fn view(change: &Change) -> CapabilityView {
    CapabilityView {
        change: if change.added { "added" } else { "removed" }.into(),
        kind: change.capability.kind.as_str().into(),
        name: change.capability.name.clone(),
        asks: change.asks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number_and_a_strange_name_is_not_shown() {
        let users = "root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000::/home/ana:/bin/sh\nb\u{1b}d:x:7:7::/:/\nbroken\n";
        assert_eq!(user_of(users, 0), Some("root"));
        assert_eq!(user_of(users, 1000), Some("ana"));
        assert_eq!(user_of(users, 7), None);
        assert_eq!(user_of(users, 100), None);
        assert_eq!(Caller::Token.name(), "the admin token");
    }
}
