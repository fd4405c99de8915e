//! Loading an instance and its new messages. Memory is a cache of the store under the epoch by which this node holds the shard;
//! under another epoch the instance is read again.

use std::sync::Arc;

use outlast_broker::ReportReply;
use outlast_core::{Incoming, MessageKind, ShardId, Snapshot, Verdict, WarmInstance};
use outlast_storage::Loaded;
use tokio::time::Instant;

use crate::dispatch::outstanding::{Place, Terms};
use crate::instances::mailbox::{Inbound, Mailboxes};
use crate::instances::run_turn::{Asked, Hydrated, InstanceRun, Obstacle};
use crate::telemetry::counters::Counters;

impl InstanceRun {
    /// Reads what is missing in memory: everything when cold, the new inbox rows when warm.
    pub(crate) async fn load(&mut self, inbound: Vec<Inbound>) -> Result<(), Obstacle> {
        self.forget_if_moved();
        let mut direct = Vec::new();
        let (mut nudged, mut begun) = (false, None);
        for inbound in inbound {
            match inbound {
                Inbound::Nudge => nudged = true,
                Inbound::Start(beginning) if self.warm.is_none() => begun = Some(*beginning),
                Inbound::Start(_) => nudged = true,
                Inbound::Wake => {}
                Inbound::Reread => {
                    self.forget();
                    direct.clear();
                    nudged = true;
                }
                Inbound::Ask { key, token, answer } => self.asked.push(Asked { key, token, answer }),
                Inbound::Direct(message, answer) => {
                    self.answers.insert(message.id.clone(), answer);
                    direct.push(Incoming { seq: None, message });
                }
            }
        }
        // A start notice may be late: together with a nudge or a worker's question, the store is read instead.
        let begun = begun.filter(|_| !nudged && self.asked.is_empty()).and_then(|begun| {
            let shard = ShardId::of(&begun.instance, self.engine.store.shards());
            Loaded::begun(shard, begun)
        });
        match self.warm.as_ref().map(|hydrated| hydrated.cursor) {
            None => match begun {
                // Nothing was read, so the current generation does: if the store has lost the start, the commit conflicts.
                Some(loaded) => self.take_in(loaded, self.engine.tenure.generation()).await?,
                None => self.hydrate().await?,
            },
            Some(after) if nudged => {
                let read = self.engine.store.inbox(&self.instance, after).await;
                let (rows, cursor) = read.map_err(|error| self.again(&error))?;
                // The id was deleted and started again: memory holds a former life, even if that one has not begun either.
                let is_new = |row: &Incoming| {
                    let known = |hydrated: &Hydrated| row.seq.is_some_and(|seq| hydrated.waiting.contains(&seq));
                    matches!(row.message.kind, MessageKind::Start(_)) && !self.warm.as_ref().is_some_and(known)
                };
                if rows.iter().any(is_new) {
                    self.hydrate().await?;
                } else if let Some(hydrated) = self.warm.as_mut() {
                    hydrated.cursor = cursor;
                    let new = rows.into_iter().filter(|row| row.seq.is_none_or(|seq| hydrated.waiting.insert(seq)));
                    self.backlog.extend(new);
                }
            }
            Some(_) => {}
        }
        self.backlog.extend(direct);
        let hydrated =
            self.warm.as_ref().filter(|hydrated| self.engine.tenure.speaks_for(hydrated.shard, hydrated.epoch));
        for Asked { key, token, answer } in self.asked.drain(..) {
            let reply = hydrated.map_or(ReportReply::TryAgain, |hydrated| {
                let same = hydrated.stored.execution == key.execution;
                let wanted = same && hydrated.instance.awaits(key.event, token);
                ReportReply::Settled(if wanted { Verdict::Applied } else { Verdict::Unknown })
            });
            let _gone = answer.send(reply);
        }
        Ok(())
    }

    /// Forgets memory that was read under another epoch or generation: another node may have had the shard since.
    fn forget_if_moved(&mut self) {
        let warm = self.warm.as_ref();
        let generation = self.engine.tenure.generation();
        let is_stale = |hydrated: &Hydrated| {
            self.engine.tenure.epoch(hydrated.shard) != Some(hydrated.epoch) || hydrated.generation != generation
        };
        if warm.is_some_and(is_stale) {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.warm = None;
        self.backlog.clear();
        self.again = false;
        for answer in std::mem::take(&mut self.answers).into_values() {
            let _gone = answer.send(ReportReply::TryAgain);
        }
    }

    /// Reads the instance, again if the read began before the shard was taken: until then its former owner may still write.
    async fn read(&mut self) -> Result<(Loaded, u64), Obstacle> {
        loop {
            let (asked, generation) = (Instant::now(), self.engine.tenure.generation());
            let loaded = self.engine.store.load(&self.instance).await.map_err(|error| self.again(&error))?;
            let loaded = loaded.ok_or(Obstacle::Missing)?;
            if self.engine.tenure.epoch(loaded.shard).is_none() {
                return Err(Obstacle::Elsewhere(loaded.shard));
            }
            if self.engine.tenure.held_before(loaded.shard, asked) {
                return Ok((loaded, generation));
            }
        }
    }

    pub(crate) async fn hydrate(&mut self) -> Result<(), Obstacle> {
        let (loaded, generation) = self.read().await?;
        Counters::count(&self.engine.counters.hydrations);
        self.take_in(loaded, generation).await
    }

    /// Makes the instance warm, with what was read under this generation.
    async fn take_in(&mut self, loaded: Loaded, generation: u64) -> Result<(), Obstacle> {
        self.trace = crate::telemetry::spans::InstanceTrace::of(&loaded);
        let Loaded { shard, state, history, inbox, cursor, mailed } = loaded;
        let Some(epoch) = self.engine.tenure.epoch(shard) else { return Err(Obstacle::Elsewhere(shard)) };
        let waiting = inbox.iter().filter_map(|row| row.seq).collect();
        self.again = state.wake_at.is_some() && state.waits == "next execution";
        let stored = state.clone();
        let mut instance =
            WarmInstance::hydrate(self.instance.clone(), Snapshot { state, history }, Arc::clone(&self.engine.limits));
        if self.engine.options.show_data_in_errors {
            instance.show_data_in_errors();
        }
        let (warm, id) = (Arc::downgrade(&self.engine.warm), self.instance.clone());
        instance.when_woken_outside(Arc::new(move || {
            if let Some(warm) = warm.upgrade() {
                warm.deliver(&id, Inbound::Wake);
            }
        }));
        // Activities without an outcome are handed out again; the broker refuses those it still has. Activities that memory took
        // for outstanding, but the history does not, are stopped. A start notice may be late and the instance long past its start:
        // it stops nothing until a commit has shown otherwise.
        let (outstanding, kv_reads) = (instance.outstanding(), instance.outstanding_kv_reads());
        let is_confirmed = mailed.is_none();
        if is_confirmed {
            let to_stop = self.engine.dispatcher.outstanding.keep_of(&self.instance, &outstanding);
            self.engine.dispatcher.stop_activities(to_stop).await;
        }
        // No other process can write to an in-process broker, so its notices need no check.
        let mailed = mailed.filter(|_| self.engine.broker.state().is_shared);
        self.warm =
            Some(Hydrated { instance, shard, epoch, generation, cursor, waiting, stored, mailed, is_confirmed });
        self.backlog = inbox.into();
        for read in kv_reads {
            self.engine.dispatcher.read_kv(read);
        }
        if !outstanding.is_empty() {
            let (place, now) = (Place { shard, epoch, generation }, self.engine.store.now());
            self.engine.dispatcher.dispatch(outstanding, Terms { place, now, may_have_run: true }).await;
        }
        Ok(())
    }
}
