//! Doing what a committed turn has asked for: activities, cancellations, reads.

use std::sync::Arc;

use outlast_core::Effect;

use crate::dispatch::Dispatcher;
use crate::dispatch::outstanding::Terms;

/// Does what a turn has asked for, now that it is committed.
pub(crate) async fn apply_effects(dispatcher: &Arc<Dispatcher>, effects: Vec<Effect>, terms: Terms) {
    let (mut items, mut to_stop) = (Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            Effect::Dispatch(item) => items.push(*item),
            Effect::ReadKv(read) => dispatcher.read_kv(*read),
            Effect::CancelActivity(key) => to_stop.extend(dispatcher.outstanding.cancel(&key)),
        }
    }
    dispatcher.stop_activities(to_stop).await;
    if !items.is_empty() {
        crate::telemetry::metrics::dispatched(&items);
        dispatcher.dispatch(items, terms).await;
    }
}
