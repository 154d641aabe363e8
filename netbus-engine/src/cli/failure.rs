//! Why a command ends without its work done, and how people, programs and the shell hear of it.

use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::text::{json_line, printable};
use crate::control::api::{ApiError, ErrorKind};
use crate::control::client::{CallError, ConnectError};

/// Why a command ends without its work done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line asks for what makes no sense.
    Usage(String),
    /// The daemon or this program could not do it. Errors of both have one form.
    Error(ApiError),
    /// Something that Netbus needs is not well, as was printed already.
    Unwell,
    /// Nobody reads standard output any more, which is how `netbus watch | head -1` ends.
    Unread,
}

#[derive(Serialize)]
struct Document<'a> {
    error: &'a ApiError,
}

impl Failure {
    /// An error of this program.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error(ApiError::new(kind, message))
    }

    /// The process's exit status.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unread => ExitCode::SUCCESS,
            Self::Error(_) | Self::Unwell => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
        }
    }

    /// What standard error gets, line ends included.
    pub(super) fn report(&self, json: bool) -> String {
        let error = match self {
            Self::Unread | Self::Unwell => return String::new(),
            Self::Usage(message) => &ApiError::new(ErrorKind::Invalid, message),
            Self::Error(error) => error,
        };
        if json {
            return json_line(&Document { error });
        }
        let mut report = format!("netbus: {}\n", printable(&error.message));
        for cause in &error.causes {
            report.push_str(&format!("  {}\n", printable(cause)));
        }
        report
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::NoDaemon | ConnectError::System { .. } => ErrorKind::Unavailable,
            ConnectError::Foreign { .. } => ErrorKind::Refused,
        };
        Self::Error(ApiError::of(kind, &error))
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(error) => Self::Error(error),
            CallError::NoAnswer | CallError::OutOfTurn | CallError::Garbled(_) | CallError::Link(_) => {
                Self::Error(ApiError::of(ErrorKind::Unavailable, &error))
            }
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(ApiError::of(ErrorKind::Internal, error.as_ref()))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Unread;
        }
        let message = "The answer could not be printed".to_owned();
        Self::Error(ApiError { kind: ErrorKind::Internal, message, causes: vec![error.to_string()] })
    }
}
