//! How the program ends: the one list of exit codes. Knows nothing of verbs or messages.

use std::process::ExitCode;

/// Exit codes are a contract: scripts branch on them. A number is never given a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, and true (healthy, no difference).
    Done,
    /// 1: the operation failed; also a refused first revision, where there is nothing to go back to.
    Failed,
    /// 2: bad command line (clap's own code).
    Usage,
    /// 3: it exists but is not running and healthy (`status`, as systemctl).
    NotHealthy,
    /// 4: no such service, revision or module (as systemctl).
    Unknown,
    /// 5: the daemon cannot be reached.
    Unreachable,
    /// 6: not permitted: the token, or the group of the socket.
    NotPermitted,
    /// 7: the time limit of waiting was reached; the work goes on.
    TimedOut,
    /// 8: the rollout failed and was rolled back; the old revision serves.
    RolledBack,
    /// 9: a configuration file is invalid.
    Invalid,
    /// 10: differences found (`diff --exit-code`); off 1 so that it cannot be mistaken for an error.
    Differences,
    /// 11: changed underneath: a revision precondition failed.
    Changed,
    /// 12: stopped, because the revision wants new capabilities.
    CapabilitiesWanted,
    /// 125: `run` of a command, and narae itself failed (as docker).
    RunFailed,
    /// 130: interrupted from the keyboard.
    Interrupted,
    /// `run` of a command ends with the guest's own code.
    Guest(u8),
}

impl Exit {
    /// The number the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotHealthy => 3,
            Self::Unknown => 4,
            Self::Unreachable => 5,
            Self::NotPermitted => 6,
            Self::TimedOut => 7,
            Self::RolledBack => 8,
            Self::Invalid => 9,
            Self::Differences => 10,
            Self::Changed => 11,
            Self::CapabilitiesWanted => 12,
            Self::RunFailed => 125,
            Self::Interrupted => 130,
            Self::Guest(code) => code,
        }
    }

    /// What a status of the admin API means for the caller. Anything below 400 is `Done`.
    pub const fn of_status(status: u16) -> Self {
        match status {
            0..400 => Self::Done,
            400 | 422 => Self::Invalid,
            401 | 403 => Self::NotPermitted,
            404 => Self::Unknown,
            409 | 412 => Self::Changed,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_exits_share_a_number() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NotHealthy,
            Exit::Unknown,
            Exit::Unreachable,
            Exit::NotPermitted,
            Exit::TimedOut,
            Exit::RolledBack,
            Exit::Invalid,
            Exit::Differences,
            Exit::Changed,
            Exit::CapabilitiesWanted,
            Exit::RunFailed,
            Exit::Interrupted,
        ];
        let codes: Vec<u8> = all.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 125, 130]);
    }

    #[test]
    fn a_guest_ends_with_its_own_number() {
        assert_eq!(Exit::Guest(42).code(), 42);
    }

    #[test]
    fn statuses_of_the_api_become_documented_exits() {
        let of = |s| Exit::of_status(s).code();
        assert_eq!(
            [200, 202, 400, 401, 403, 404, 412, 422, 500, 503].map(of),
            [0, 0, 9, 6, 6, 4, 11, 9, 1, 1]
        );
    }
}
