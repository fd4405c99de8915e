//! The bodies of messages: a version byte, then MessagePack. A body with a newer version is for newer nodes.

use outlast_core::{
    ActivityKey, ActivityOutcome, ActivityRef, AttemptInfo, ErrorDetails, ExecutionId, InstanceId, InstanceState,
    MessageId, OrchestrationStatus, ShardId, StartSnapshot, Token, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::{Question, Report, ReportReply, ReportResult};

/// What the owner of a shard is sent.
#[derive(Serialize, Deserialize)]
pub(crate) enum ShardBody {
    Nudge(InstanceId),
    Report(Box<ReportBody>),
    Begin(Box<StartSnapshot>),
    Deleted(InstanceId),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ReportBody {
    key: ActivityKey,
    token: Token,
    result: ResultBody,
    /// Of `Begun`: its code does not run yet. Older owners take it as begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    waits: bool,
    /// Of `Begun`: more questions. Older owners answer the first alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<QuestionBody>,
}

#[derive(Serialize, Deserialize)]
struct QuestionBody {
    key: ActivityKey,
    token: Token,
    waits: bool,
}

#[derive(Serialize, Deserialize)]
enum ResultBody {
    /// A question: is it wanted?
    Begun,
    Done {
        outcome: ActivityOutcome,
        run: AttemptInfo,
    },
    Unregistered {
        activity: String,
    },
}

/// The owner's answer.
#[derive(Serialize, Deserialize)]
pub(crate) enum ReplyBody {
    Settled(Verdict),
    Moved(ShardId),
    TryAgain,
    /// To several questions.
    Each(Vec<ReplyBody>),
}

/// A cancellation; without a token it is an older owner's, and it is not known for which life it is.
#[derive(Serialize, Deserialize)]
pub(crate) struct CancelBody {
    pub(crate) key: ActivityKey,
    #[serde(default)]
    pub(crate) token: Option<Token>,
}

/// What a worker sends as a report.
pub(crate) enum Asked {
    Report(Report),
    Questions(Vec<Question>),
}

/// A tag that a publisher uses for the first time, by the name of its consumer.
#[derive(Serialize, Deserialize)]
pub(crate) struct TagBody {
    pub(crate) consumer: String,
}

/// What an instance has come to; without it, readers look in the store.
#[derive(Serialize, Deserialize)]
pub(crate) struct StatusUpdateBody {
    pub(crate) status: Option<StatusBody>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct StatusBody {
    end: EndBody,
    custom_status: Option<String>,
    custom_status_version: u64,
    pub(crate) execution: ExecutionId,
    /// Older nodes do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begun_by: Option<MessageId>,
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
            ReportResult::Unregistered { activity } => ResultBody::Unregistered { activity },
        };
        Self { key: report.key, token: report.token, result, waits: false, more: Vec::new() }
    }
}

impl ReportBody {
    /// One body for all questions; `None` for none.
    pub(crate) fn asking(questions: &[Question]) -> Option<Self> {
        let mut bodies = questions.iter().map(|Question { activity, begun }| {
            let ActivityRef { key, token } = activity.clone();
            QuestionBody { key, token, waits: !begun }
        });
        let QuestionBody { key, token, waits } = bodies.next()?;
        Some(Self { key, token, result: ResultBody::Begun, waits, more: bodies.collect() })
    }

    pub(crate) fn open(self) -> Asked {
        let Self { key, token, result, waits, more } = self;
        let result = match result {
            ResultBody::Done { outcome, run } => ReportResult::Done { outcome, run },
            ResultBody::Unregistered { activity } => ReportResult::Unregistered { activity },
            ResultBody::Begun => {
                let bodies = std::iter::once(QuestionBody { key, token, waits }).chain(more);
                let question = |body: QuestionBody| {
                    let activity = ActivityRef { key: body.key, token: body.token };
                    Question { activity, begun: !body.waits }
                };
                return Asked::Questions(bodies.map(question).collect());
            }
        };
        Asked::Report(Report { key, token, result })
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

impl ReplyBody {
    /// The body for these answers. A single one has the form of older owners, which only ever answer one question.
    pub(crate) fn to(mut replies: Vec<ReportReply>) -> Self {
        match (replies.pop(), replies.is_empty()) {
            (Some(only), true) => only.into(),
            (last, _) => Self::Each(replies.into_iter().chain(last).map(Self::from).collect()),
        }
    }

    /// One answer, or as many as there are.
    pub(crate) fn replies(self) -> Vec<ReportReply> {
        match self {
            Self::Settled(verdict) => vec![ReportReply::Settled(verdict)],
            Self::Moved(shard) => vec![ReportReply::Moved(shard)],
            Self::TryAgain => vec![ReportReply::TryAgain],
            Self::Each(replies) => replies.into_iter().flat_map(Self::replies).collect(),
        }
    }
}

impl StatusBody {
    pub(crate) fn new(state: &InstanceState, begun_by: Option<MessageId>) -> Self {
        let execution = state.execution;
        let (end, custom_status, custom_status_version) = match state.to_status() {
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
        Self { end, custom_status, custom_status_version, execution, begun_by }
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
