//! The bodies of messages: a version byte, then MessagePack. A body with a newer version is for newer nodes.

use outlast_core::{
    ActivityKey, ActivityOutcome, AttemptInfo, Beginning, ErrorDetails, ExecutionId, InstanceId, OrchestrationStatus,
    ShardId, Token, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::{Report, ReportReply, ReportResult};

/// What the owner of a shard is sent.
#[derive(Serialize, Deserialize)]
pub(crate) enum Mail {
    Nudge(InstanceId),
    Report(Box<ReportBody>),
    Begin(Box<Beginning>),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ReportBody {
    key: ActivityKey,
    token: Token,
    result: ResultBody,
}

#[derive(Serialize, Deserialize)]
enum ResultBody {
    Begun,
    Done { outcome: ActivityOutcome, run: AttemptInfo },
    Unregistered { activity: String },
}

/// The owner's answer.
#[derive(Serialize, Deserialize)]
pub(crate) enum ReplyBody {
    Settled(Verdict),
    Moved(ShardId),
    TryAgain,
}

/// A cancellation.
#[derive(Serialize, Deserialize)]
pub(crate) struct CancelBody {
    pub(crate) key: ActivityKey,
}

/// A tag that a publisher uses for the first time, by the name of its consumer.
#[derive(Serialize, Deserialize)]
pub(crate) struct TagBody {
    pub(crate) consumer: String,
}

/// What an instance has come to; without it, readers look in the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct NewsBody {
    pub(crate) status: Option<StatusBody>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct StatusBody {
    end: EndBody,
    custom_status: Option<String>,
    custom_status_version: u64,
    pub(crate) execution: ExecutionId,
}

#[derive(Serialize, Deserialize)]
enum EndBody {
    NotFound,
    Running,
    Completed { output: String },
    Failed { details: ErrorDetails },
}

impl From<Report> for ReportBody {
    fn from(report: Report) -> Self {
        let result = match report.result {
            ReportResult::Done { outcome, run } => ResultBody::Done { outcome, run },
            ReportResult::Begun => ResultBody::Begun,
            ReportResult::Unregistered { activity } => ResultBody::Unregistered { activity },
        };
        Self { key: report.key, token: report.token, result }
    }
}

impl From<ReportBody> for Report {
    fn from(body: ReportBody) -> Self {
        let result = match body.result {
            ResultBody::Done { outcome, run } => ReportResult::Done { outcome, run },
            ResultBody::Begun => ReportResult::Begun,
            ResultBody::Unregistered { activity } => ReportResult::Unregistered { activity },
        };
        Self { key: body.key, token: body.token, result }
    }
}

impl From<ReportReply> for ReplyBody {
    fn from(reply: ReportReply) -> Self {
        match reply {
            ReportReply::Settled(verdict) => Self::Settled(verdict),
            ReportReply::Moved(shard) => Self::Moved(shard),
            ReportReply::TryAgain => Self::TryAgain,
        }
    }
}

impl From<ReplyBody> for ReportReply {
    fn from(body: ReplyBody) -> Self {
        match body {
            ReplyBody::Settled(verdict) => Self::Settled(verdict),
            ReplyBody::Moved(shard) => Self::Moved(shard),
            ReplyBody::TryAgain => Self::TryAgain,
        }
    }
}

impl StatusBody {
    pub(crate) fn new(status: OrchestrationStatus, execution: ExecutionId) -> Self {
        let (end, custom_status, custom_status_version) = match status {
            OrchestrationStatus::NotFound => (EndBody::NotFound, None, 0),
            OrchestrationStatus::Running { custom_status, custom_status_version } => {
                (EndBody::Running, custom_status, custom_status_version)
            }
            OrchestrationStatus::Completed { output, custom_status, custom_status_version } => {
                (EndBody::Completed { output }, custom_status, custom_status_version)
            }
            OrchestrationStatus::Failed { details, custom_status, custom_status_version } => {
                (EndBody::Failed { details }, custom_status, custom_status_version)
            }
        };
        Self { end, custom_status, custom_status_version, execution }
    }
}

impl From<StatusBody> for OrchestrationStatus {
    fn from(body: StatusBody) -> Self {
        let StatusBody { end, custom_status, custom_status_version, .. } = body;
        match end {
            EndBody::NotFound => Self::NotFound,
            EndBody::Running => Self::Running { custom_status, custom_status_version },
            EndBody::Completed { output } => Self::Completed { output, custom_status, custom_status_version },
            EndBody::Failed { details } => Self::Failed { details, custom_status, custom_status_version },
        }
    }
}
