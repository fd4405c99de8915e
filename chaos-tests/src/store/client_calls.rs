//! Calls from outside: starts, messages, heartbeats, copies, deletions.

use async_trait::async_trait;
use outlast_core::{
    EventId, ExecutionId, Fork, HistoryEvent, InstanceId, InstanceState, InstanceStatus, Message, MessageKind, Millis,
    ShardId, StartMessage, StartSnapshot, encode,
};
use outlast_storage::{
    Arrival, CallStore, DeleteInstanceResult, DeleteOptions, Error, HeartbeatOf, InstanceFilter, PruneOptions,
    PruneResult, Receipt, SendOptions, StartConflict, StartOutcome, StartReceipt, StartRequest,
};

use super::SimulatedStore;
use super::tables::{Instance, Transaction};

#[async_trait]
impl CallStore for SimulatedStore {
    async fn start(&self, request: StartRequest) -> Result<StartReceipt, Error> {
        let (instance, message) = (request.instance.clone(), request.message.clone());
        let arrival = move |receipt: &StartReceipt| {
            Some(match receipt.seq {
                Some(seq) => Arrival::Begin(receipt.shard, StartSnapshot { instance, message, seq }),
                None => Arrival::Nudge(receipt.shard, instance),
            })
        };
        self.change_then(move |tx| tx.start(request), arrival).await
    }

    async fn send(&self, instance: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error> {
        let (instance, receiver) = (instance.clone(), instance.clone());
        let arrival = move |receipt: &Receipt| receipt.nudge.map(|shard| Arrival::Nudge(shard, receiver));
        self.change_then(move |tx| tx.send(&instance, message, options), arrival).await
    }

    async fn save_heartbeat(&self, of: HeartbeatOf<'_>, details: String) -> Result<(), Error> {
        let (key, scheduled_at, activity) = (of.key.clone(), of.scheduled_at, of.activity.to_owned());
        self.change(move |tx| {
            let Some(found) = tx.tables.instances.get_mut(&key.instance) else { return Ok(()) };
            let is_current = found.is_running() && found.state.execution == key.execution;
            let is_it = |event: &HistoryEvent| event.event_id == key.event && event.at == scheduled_at;
            let is_scheduled = found.events(key.execution).any(is_it);
            let is_over = found.events(key.execution).any(|event| event.source_event_id == Some(key.event));
            if is_current && is_scheduled && !is_over {
                found.heartbeats.insert(activity, details);
            }
            Ok(())
        })
        .await
    }

    async fn heartbeat(&self, instance: &InstanceId, activity: &str) -> Result<Option<String>, Error> {
        self.read(|tables, _| tables.instances.get(instance)?.heartbeats.get(activity).cloned()).await
    }

    async fn import(&self, instance: &InstanceId, fork: Fork) -> Result<ShardId, Error> {
        let (instance, imported) = (instance.clone(), instance.clone());
        let arrival = move |shard: &ShardId| Some(Arrival::Nudge(*shard, imported));
        self.change_then(move |tx| tx.import(&instance, fork), arrival).await
    }

    async fn delete(&self, instance: &InstanceId, options: DeleteOptions) -> Result<DeleteInstanceResult, Error> {
        let instance = instance.clone();
        let delete = move |tx: &mut Transaction<'_>| {
            tx.found_since(&instance, options.first_tried)?;
            tx.tables.delete(&instance, options.force)
        };
        self.change(delete).await
    }

    async fn delete_bulk(&self, filter: InstanceFilter) -> Result<DeleteInstanceResult, Error> {
        self.change(move |tx| Ok(tx.tables.delete_bulk(&filter))).await
    }

    async fn prune(&self, instance: &InstanceId, options: PruneOptions) -> Result<PruneResult, Error> {
        let instance = instance.clone();
        self.change(move |tx| tx.tables.prune(&instance, &options)).await
    }

    async fn prune_bulk(&self, filter: InstanceFilter, options: PruneOptions) -> Result<PruneResult, Error> {
        self.change(move |tx| Ok(tx.tables.prune_bulk(&filter, &options))).await
    }
}

impl Transaction<'_> {
    fn start(&mut self, request: StartRequest) -> Result<StartReceipt, Error> {
        let StartRequest { instance, message, on_conflict } = request;
        let MessageKind::Start(start) = &message.kind else {
            return Err(Error::unusable("a start needs a start message"));
        };
        if let Some(shard) = self.insert_instance(&instance, start) {
            let seq = self.insert_message(&instance, message);
            return Ok(StartReceipt { shard, outcome: StartOutcome::Started, seq });
        }
        let Some(found) = self.tables.instances.get(&instance) else { return Err(Error::InstanceNotFound(instance)) };
        let (shard, orchestration) = (found.shard, found.state.orchestration.clone());
        let is_retried = found.is_waiting(&message.id) || found.has_applied(&message.id);
        let is_foreign = orchestration != start.name;
        let outcome = match on_conflict {
            StartConflict::UseExisting if is_foreign => return Err(Error::InstanceExists { instance, orchestration }),
            StartConflict::Fail if is_foreign || !is_retried => {
                return Err(Error::InstanceExists { instance, orchestration });
            }
            StartConflict::UseExisting | StartConflict::Fail if is_retried => StartOutcome::Started,
            StartConflict::UseExisting | StartConflict::Fail => StartOutcome::AlreadyExists,
            StartConflict::TerminateExisting => {
                if !is_retried {
                    let start = start.clone();
                    self.replace(&instance, message, start);
                }
                StartOutcome::Replaced
            }
        };
        Ok(StartReceipt { shard, outcome, seq: None })
    }

    /// Tells a running instance to begin anew; makes an ended one ready for its next execution.
    fn replace(&mut self, id: &InstanceId, message: Message, start: StartMessage) {
        let Some(found) = self.tables.instances.get_mut(id) else { return };
        let message = if found.is_running() {
            Message { id: message.id, kind: MessageKind::Replace(start) }
        } else {
            found.state = InstanceState {
                execution: found.state.execution.next(),
                custom_status_version: found.state.custom_status_version + 1,
                ..InstanceState::begun(&start.name)
            };
            found.parent = None;
            found.inbox.clear();
            found.kv.clear();
            message
        };
        self.insert_message(id, message);
    }

    /// The instance, if it existed when the call was first made.
    fn found_since(&self, id: &InstanceId, first_tried: Option<Millis>) -> Result<&Instance, Error> {
        let was_there = |found: &&Instance| first_tried.is_none_or(|moment| found.created <= moment);
        let found = self.tables.instances.get(id).filter(was_there);
        found.ok_or_else(|| Error::InstanceNotFound(id.clone()))
    }

    fn send(&mut self, id: &InstanceId, message: Message, options: SendOptions) -> Result<Receipt, Error> {
        let SendOptions { queue_messages_max, first_tried } = options;
        let found = self.found_since(id, first_tried)?;
        if !found.is_running() || found.is_waiting(&message.id) || found.has_applied(&message.id) {
            return Ok(Receipt { nudge: None });
        }
        if let MessageKind::Enqueue { queue, .. } = &message.kind {
            let same = |kind: &MessageKind| matches!(kind, MessageKind::Enqueue { queue: other, .. } if other == queue);
            if found.inbox.values().filter(|row| same(&row.message.kind)).count() >= queue_messages_max {
                let (instance, queue, max) = (id.clone(), queue.clone(), queue_messages_max);
                return Err(Error::QueueFull { instance, queue, max });
            }
        }
        let shard = found.shard;
        self.insert_message(id, message);
        Ok(Receipt { nudge: Some(shard) })
    }

    fn import(&mut self, id: &InstanceId, fork: Fork) -> Result<ShardId, Error> {
        let Fork { state, history, kv } = fork;
        let start = StartMessage {
            name: state.orchestration.clone(),
            version: None,
            input: String::new(),
            parent: None,
            traceparent: None,
        };
        let taken = || Error::InstanceExists { instance: id.clone(), orchestration: state.orchestration.clone() };
        let shard = self.insert_instance(id, &start).ok_or_else(taken)?;
        let Some(made) = self.tables.instances.get_mut(id) else { return Err(Error::InstanceNotFound(id.clone())) };
        made.state = InstanceState {
            status: InstanceStatus::Running,
            completed_at: None,
            execution: ExecutionId(1),
            history_bytes: history.iter().map(|event| encode(&event.kind).len() as u64).sum(),
            stalled: 0,
            waits: String::new(),
            output: None,
            ..state
        };
        // A copy has applied no message: those were for the original.
        let copied = history.into_iter().map(|event| (event.event_id, HistoryEvent { message_id: None, ..event }));
        let copied: std::collections::BTreeMap<EventId, HistoryEvent> = copied.collect();
        if !copied.is_empty() {
            made.history.insert(ExecutionId(1), copied);
        }
        made.kv = kv.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Ok(shard)
    }
}
