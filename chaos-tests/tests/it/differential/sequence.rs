//! The random calls of a comparison. Ids and messages are few, so that calls meet.

use outlast_storage::StartConflict;
use proptest::collection::vec;
use proptest::prelude::*;

/// Few ids and few messages, so that calls meet.
pub(super) const IDS: [&str; 4] = ["a", "b", "c", "d"];
const MESSAGES: u8 = 6;
/// The end of the first half of all moments that are written here.
const MIDDLE: u64 = 1_030;

#[derive(Clone, Debug)]
pub(super) enum Call {
    Start {
        id: usize,
        orchestration: bool,
        message: u8,
        on_conflict: StartConflict,
    },
    Send {
        id: usize,
        message: Sent,
        is_repeated: bool,
    },
    /// One of the activities that were scheduled, by its number, or of another life.
    SaveHeartbeat {
        id: usize,
        number: usize,
        is_of_this_life: bool,
    },
    Import {
        id: usize,
    },
    Delete {
        id: usize,
        force: bool,
        is_repeated: bool,
    },
    DeleteBulk {
        named: bool,
        before: Option<u64>,
        limit: Option<u32>,
    },
    Prune {
        id: usize,
        options: (Option<u32>, Option<u64>),
    },
    PruneBulk {
        named: bool,
        options: (Option<u32>, Option<u64>),
        limit: Option<u32>,
    },
    Turns(Vec<Deed>),
    Hand {
        shard_of: usize,
        to_other: bool,
    },
    Session {
        session: bool,
        other: bool,
        release: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Sent {
    Raise(u8),
    Enqueue(u8, bool),
    Cancel(u8),
}

/// One turn of an instance, as far as the random choice goes.
#[derive(Clone, Debug)]
pub(super) struct Deed {
    pub(super) id: usize,
    pub(super) consumed: usize,
    pub(super) does: Does,
    pub(super) tells: Option<(usize, bool)>,
    pub(super) holds: Option<u8>,
    pub(super) wake: Option<u64>,
    pub(super) pending: u32,
    pub(super) paused: bool,
    pub(super) spoilt: Option<Spoilt>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Does {
    Nothing,
    Schedules,
    Completes,
    SetsValue(u8),
    ClearsValues,
    ContinuesAsNew,
    Ends { fails: bool },
}

/// What a store must not take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoilt {
    Epoch,
    Expected,
    EventTwice,
    RowTwice,
    OutcomeBeforeItsCause,
}

fn message() -> impl Strategy<Value = u8> {
    0..MESSAGES
}

fn options() -> impl Strategy<Value = (Option<u32>, Option<u64>)> {
    (prop::option::of(0..3_u32), prop::option::weighted(0.3, Just(MIDDLE)))
}

fn deed() -> impl Strategy<Value = Deed> {
    let does = prop_oneof![
        2 => Just(Does::Nothing),
        3 => Just(Does::Schedules),
        2 => Just(Does::Completes),
        2 => (0..3_u8).prop_map(Does::SetsValue),
        1 => Just(Does::ClearsValues),
        2 => Just(Does::ContinuesAsNew),
        2 => any::<bool>().prop_map(|fails| Does::Ends { fails }),
    ];
    let spoilt = prop_oneof![
        Just(Spoilt::Epoch),
        Just(Spoilt::Expected),
        Just(Spoilt::EventTwice),
        Just(Spoilt::RowTwice),
        Just(Spoilt::OutcomeBeforeItsCause)
    ];
    let tells = prop::option::weighted(0.4, (0..IDS.len(), any::<bool>()));
    let row = (prop::option::of(1_u64..60), 0..2_u32, prop::bool::weighted(0.1));
    (
        0..IDS.len(),
        0..4_usize,
        does,
        tells,
        prop::option::weighted(0.2, message()),
        row,
        prop::option::weighted(0.15, spoilt),
    )
        .prop_map(|(id, consumed, does, tells, holds, (wake, pending, paused), spoilt)| Deed {
            id,
            consumed,
            does,
            tells,
            holds,
            wake,
            pending,
            paused,
            spoilt,
        })
}

pub(super) fn call() -> impl Strategy<Value = Call> {
    let one = || 0..IDS.len();
    let conflict = prop_oneof![
        Just(StartConflict::UseExisting),
        Just(StartConflict::Fail),
        Just(StartConflict::TerminateExisting)
    ];
    let sent = prop_oneof![
        message().prop_map(Sent::Raise),
        (message(), any::<bool>()).prop_map(|(message, queue)| Sent::Enqueue(message, queue)),
        message().prop_map(Sent::Cancel)
    ];
    let limit = || prop::option::of(0..3_u32);
    prop_oneof![
        6 => (one(), prop::bool::weighted(0.8), message(), conflict).prop_map(|(id, orchestration, message, on_conflict)| {
            Call::Start { id, orchestration, message, on_conflict }
        }),
        6 => (one(), sent, prop::bool::weighted(0.1))
            .prop_map(|(id, message, is_repeated)| Call::Send { id, message, is_repeated }),
        4 => (one(), 0..3_usize, prop::bool::weighted(0.8))
            .prop_map(|(id, number, is_of_this_life)| Call::SaveHeartbeat { id, number, is_of_this_life }),
        1 => one().prop_map(|id| Call::Import { id }),
        1 => (one(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(id, force, is_repeated)| Call::Delete { id, force, is_repeated }),
        1 => (any::<bool>(), prop::option::of(Just(MIDDLE)), limit())
            .prop_map(|(named, before, limit)| Call::DeleteBulk { named, before, limit }),
        1 => (one(), options()).prop_map(|(id, options)| Call::Prune { id, options }),
        1 => (any::<bool>(), options(), limit())
            .prop_map(|(named, options, limit)| Call::PruneBulk { named, options, limit }),
        12 => vec(deed(), 1..4).prop_map(Call::Turns),
        1 => (one(), any::<bool>()).prop_map(|(shard_of, to_other)| Call::Hand { shard_of, to_other }),
        1 => (any::<bool>(), any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(session, other, release)| Call::Session { session, other, release }),
    ]
}
