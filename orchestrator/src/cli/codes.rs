//! Codes of the command line's errors. Those that files, modules and the API share have their chapters in `config`; E0601 to
//! E0699 belong to the command line alone, and `narae help E06xx` prints their chapters from here.

/// A file is no text in UTF-8.
pub const NOT_UTF8: &str = "E0005";
/// A file named on the command line cannot be read.
pub const READ: &str = "E0006";
/// A verb, a flag or a scheme that comes later.
pub const LATER: &str = "E0043";
/// Not a secret's name.
pub const SECRET_NAME: &str = "E0180";
/// The revision wants more than the last one.
pub const CAPABILITIES: &str = "E0183";
/// A secret is read by a service.
pub const SECRET_IN_USE: &str = "E0184";
/// Not a secret's value.
pub const SECRET_VALUE: &str = "E0185";
/// One service in two files.
pub const TWICE: &str = "E0124";
/// The module is over 64 MiB.
pub const MODULE_SIZE: &str = "E0302";
/// The module is not the one the file pins.
pub const DIGEST: &str = "E0306";
/// The file names one world, the module is of the other.
pub const WORLD: &str = "E0308";
/// WebAssembly text that does not assemble.
pub const WAT: &str = "E0310";
/// No such service.
pub const UNKNOWN: &str = "E0401";
/// No such revision.
pub const UNKNOWN_REVISION: &str = "E0402";
/// A revision precondition failed.
pub const CHANGED: &str = "E0403";
/// The token is missing or wrong.
pub const TOKEN: &str = "E0404";
/// No such stored module.
pub const UNKNOWN_MODULE: &str = "E0407";
/// The daemon does not answer.
pub const UNREACHABLE: &str = "E0501";
/// The path of the socket does not fit.
pub const SOCKET_PATH: &str = "E0502";
/// The daemon, or the socket's mode, says no.
pub const NOT_PERMITTED: &str = "E0503";
/// The new revision was refused, the old one serves.
pub const ROLLED_BACK: &str = "E0507";
/// Waited long enough.
pub const TIME: &str = "E0508";

/// `--host` names something narae cannot talk to.
pub const HOST: &str = "E0601";
/// The module is no regular file that can be read.
pub const MODULE_FILE: &str = "E0602";
/// Nobody is there to say yes.
pub const CONFIRM: &str = "E0603";
/// The daemon's answer is not what the API promises.
pub const ANSWER: &str = "E0604";
/// `run` could not run.
pub const RUN: &str = "E0605";
/// The result cannot be written.
pub const WRITE: &str = "E0606";
/// A value of the command line that clap cannot check.
pub const VALUE: &str = "E0607";
/// The daemon failed.
pub const DAEMON: &str = "E0608";
/// The new revision was refused, and there is nothing to go back to.
pub const REFUSED: &str = "E0609";
/// Another revision took the place of the one that is waited for.
pub const SUPERSEDED: &str = "E0610";
/// There is no help on that.
pub const NO_HELP: &str = "E0611";
/// What is wanted is proved, and no replica of it serves.
pub const NOT_SERVING: &str = "E0612";
/// The run that was waited for did not succeed.
pub const RUN_FAILED: &str = "E0645";

const CHAPTERS: &[(&str, &str, &str)] = &[
    (
        HOST,
        "the host is not one narae can talk to",
        "`--host` takes `unix:/path/to/admin.sock` or `http://127.0.0.1:7070`. Plain HTTP is for loopback only, because the token\n\
         travels with every call. `https://` and `ssh://` are not supported yet; a tunnel made by `ssh -L` is loopback.",
    ),
    (
        MODULE_FILE,
        "the module file cannot be used",
        "A module is a regular file (no directory, device or pipe) of at most 64 MiB. Its path in a service file is relative to\n\
         that file. It is opened once, and the bytes that were read are the bytes that are sent.",
    ),
    (
        CONFIRM,
        "a question that nobody can answer",
        "The verb asks before it destroys something, and there is no terminal to ask on (or `--no-input` was given). Add `-y`.",
    ),
    (
        ANSWER,
        "the daemon's answer is not understood",
        "The client and the daemon are of different versions, or something else answers at that address. Compare with `narae version`.",
    ),
    (
        RUN,
        "the module could not be run",
        "narae itself failed before or while the guest ran; a command's own exit code is passed on as it is.",
    ),
    (
        WRITE,
        "a result cannot be written",
        "Standard output or the file named by `-o` refused the bytes: a full disk, or no permission.",
    ),
    (
        VALUE,
        "a value is not understood",
        "The message says what was expected. Durations are `500ms`, `30s`, `5m`, `1h30m`; sizes `64MiB`.",
    ),
    (
        DAEMON,
        "the daemon failed",
        "The daemon was reached and could not do it. Its log (stderr of `narae serve`) tells more.",
    ),
    (
        REFUSED,
        "the revision was refused, and there is no older one",
        "It did not get healthy: its start trapped, its probe ran out, or it made no progress within `rollout.progress_deadline`.\n\
         Nothing was rolled back: it was the first revision, or `rollout.auto_rollback` is off.\n\
         `narae rollout status NAME` tells the reason, `narae logs NAME --revision N` what the guest said.",
    ),
    (
        SUPERSEDED,
        "another revision took its place",
        "While this revision was waited for, somebody deployed or undid another one. The daemon goes on with that one.\n\
         `narae rollout status NAME` shows it.",
    ),
    (
        NO_HELP,
        "there is no help on that",
        "`narae help` lists the verbs and the topics; codes are printed below each error.",
    ),
    (
        NOT_SERVING,
        "what is wanted does not serve",
        "The revision proved itself once, and none of its replicas serves now: the service is stopped, or they die.\n\
         `narae status NAME` tells why; `narae start NAME` starts a stopped one, `narae restart NAME` tries again at once.",
    ),
    (
        RUN_FAILED,
        "the run did not succeed",
        "More attempts failed than `job.retries` allows, `job.timeout` passed, or somebody ended it. `narae status NAME` lists\n\
         the attempts with their exit codes, `narae logs NAME --replica rN` what one of them printed; `narae restart NAME` runs\n\
         it again.",
    ),
];

/// The chapter of one of the command line's own codes: title and text.
pub fn explain(code: &str) -> Option<(&'static str, &'static str)> {
    CHAPTERS
        .iter()
        .find(|(c, _, _)| c.eq_ignore_ascii_case(code))
        .map(|(_, title, text)| (*title, *text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_command_line_has_a_chapter() {
        assert!(CHAPTERS.is_sorted_by(|a, b| a.0 < b.0));
        for (code, title, text) in CHAPTERS {
            assert!(code.len() == 5 && code.starts_with("E06"));
            assert!(!title.is_empty() && text.len() > 40, "{code}");
        }
        assert_eq!(explain("e0609").map(|c| c.0), Some(CHAPTERS[8].1));
        assert_eq!(explain("E0699"), None);
    }
}
