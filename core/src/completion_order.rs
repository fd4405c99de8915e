//! The order in which a select sees completions that are all there: as they stand in the history, whatever the order of its
//! arguments. Called by the combinators, while code is polled.
//!
//! While a select looks for its winner, completions behind a horizon are not visible. A future that is polled and whose
//! completion is behind it is held back: it has registered its waker, and is woken when the horizon reaches it. What is
//! still held back when the select ends stays so for the next one, and is woken when the poll ends:
//! so a loop of selects over many futures polls each of them twice instead of once per select.

use std::task::{Poll, Waker};

use crate::EventId;
use crate::journal::{Journal, JournalState};

impl Journal {
    /// Runs `attempt` so that a ready result wins over another whose completion came later in history.
    ///
    /// Completions become visible one after the other, in their order, as far as `attempt` looks at them.
    pub(crate) fn in_completion_order<T>(&self, mut attempt: impl FnMut() -> Poll<T>) -> Poll<T> {
        let outer = {
            let mut state = self.lock();
            let outer = state.horizon;
            if state.held.is_empty() && state.ready_count_up_to(outer) < 2 {
                drop(state);
                return attempt();
            }
            if state.identity.rules.wakes_after_each_select() {
                drop(state);
                return self.waking_after_each_select(attempt);
            }
            state.horizon = Some(EventId(0));
            outer
        };
        loop {
            let result = attempt();
            let mut state = self.lock();
            state.take_held_back();
            let next = if result.is_ready() { None } else { state.next_held(outer) };
            let Some((completion, waker)) = next else {
                state.horizon = outer;
                return result;
            };
            // An inner select may have held back what this one saw already: the horizon never goes back for that.
            state.horizon = state.horizon.max(Some(completion));
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Wakes the first that is held back, because the poll has ended; `false` when there is none.
    pub(crate) fn wake_next_held(&self) -> bool {
        let next = self.lock().next_held(None);
        let Some((_, waker)) = next else { return false };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// How executions of version 0 were recorded: the order in which held-back futures are polled next shows in what
    /// their code asked for.
    fn waking_after_each_select<T>(&self, mut attempt: impl FnMut() -> Poll<T>) -> Poll<T> {
        let outer = self.lock().horizon.replace(EventId(0));
        let mut held = Vec::new();
        loop {
            let result = attempt();
            let mut state = self.lock();
            held.append(&mut state.held_back);
            let next = if result.is_ready() { None } else { state.next_visible(&held, outer) };
            let (horizon, wakers) = match next {
                Some(completion) => (Some(completion), state.wakers(&held, completion)),
                None => (outer, state.wakers(&held, EventId(u64::MAX))),
            };
            state.horizon = horizon;
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            if next.is_none() {
                return result;
            }
        }
    }
}

impl JournalState {
    fn ready_count_up_to(&self, horizon: Option<EventId>) -> usize {
        let last = horizon.unwrap_or(EventId(u64::MAX));
        self.ready.range(..=(last, EventId(u64::MAX))).take(2).count()
    }

    /// Sorts what was held back in the last attempt by its completion.
    fn take_held_back(&mut self) {
        for id in std::mem::take(&mut self.held_back) {
            if let Some(completion) = self.completion_of(id) {
                self.held.insert(completion, id);
            }
        }
    }

    /// The first completion that is held back and within `outer`, and whom to wake for it.
    fn next_held(&mut self, outer: Option<EventId>) -> Option<(EventId, Option<Waker>)> {
        while let Some((completion, id)) = self.held.first_key_value().map(|(completion, id)| (*completion, *id)) {
            if outer.is_some_and(|last| completion > last) {
                return None;
            }
            self.held.remove(&completion);
            // It may have been taken or dropped since.
            if self.completion_of(id) == Some(completion) {
                return Some((completion, self.waker_of(id)));
            }
        }
        None
    }

    fn next_visible(&self, held: &[EventId], outer: Option<EventId>) -> Option<EventId> {
        let current = self.horizon.unwrap_or(EventId(u64::MAX));
        held.iter()
            .filter_map(|id| self.completion_of(*id))
            .filter(|completion| *completion > current && outer.is_none_or(|last| *completion <= last))
            .min()
    }

    fn wakers(&mut self, held: &[EventId], up_to: EventId) -> Vec<Waker> {
        let visible = |state: &Self, id| state.completion_of(id).is_some_and(|completion| completion <= up_to);
        held.iter().filter_map(|id| if visible(self, *id) { self.waker_of(*id) } else { None }).collect()
    }
}
