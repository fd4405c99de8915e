//! Showing a committed turn to the world: log lines, cancellations, activities.

use std::sync::Arc;

use outlast_core::{Effect, ExecutionId, InstanceId, LogLevel, LogLine};

use crate::dispatch::Dispatcher;
use crate::dispatch::outstanding::Terms;
use crate::telemetry::logging::ORCHESTRATION;

/// What a committed turn shows to the world, and whose it is.
pub(crate) struct Shown {
    pub(crate) instance: InstanceId,
    pub(crate) terms: Terms,
    pub(crate) execution: ExecutionId,
    pub(crate) orchestration: String,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) effects: Vec<Effect>,
}

/// Does what a turn has asked for, now that it is committed.
pub(crate) async fn apply_effects(dispatcher: &Arc<Dispatcher>, mut shown: Shown) {
    for line in std::mem::take(&mut shown.logs) {
        log(&shown, line);
    }
    let (mut items, mut to_stop) = (Vec::new(), Vec::new());
    for effect in shown.effects {
        match effect {
            Effect::Dispatch(item) => items.push(*item),
            Effect::ReadKv(read) => dispatcher.read_kv(*read),
            Effect::CancelActivity(key) => to_stop.extend(dispatcher.outstanding.cancel(&key)),
        }
    }
    dispatcher.stop_activities(to_stop).await;
    if !items.is_empty() {
        crate::telemetry::metrics::dispatched(&items);
        dispatcher.dispatch(items, shown.terms).await;
    }
}

fn log(shown: &Shown, line: LogLine) {
    macro_rules! at {
        ($level:ident) => {
            tracing::$level!(
                target: ORCHESTRATION,
                instance = %shown.instance,
                execution = shown.execution.0,
                orchestration = %shown.orchestration,
                "{}", line.text
            )
        };
    }
    match line.level {
        LogLevel::Debug => at!(debug),
        LogLevel::Info => at!(info),
        LogLevel::Warn => at!(warn),
        LogLevel::Error => at!(error),
    }
}
