//! Which faults there are, and when.

use std::time::Duration;

use super::dice::Dice;
use crate::broker::BrokerFaults;
use crate::store::Faults;

/// Something that happens to the surroundings of the nodes.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The node in this slot dies; another takes its place after a while.
    Kill(usize, Duration),
    /// It does not reach the broker.
    CutOffBroker(usize, Duration),
    /// It does not reach the store.
    CutOffStore(usize, Duration),
    /// The stream of work loses everything.
    Wipe,
    /// It is set back to when it was last copied.
    RollBack,
    Copy,
    /// So many thousandths of what it holds are lost, and nobody notices.
    LoseFromTheMiddle(u32),
    Store(Faults),
    Broker(BrokerFaults),
}

/// When faults begin and end.
pub(super) const FAULTS_UNTIL: Duration = Duration::from_secs(45);

/// The faults of a seed, in order, each with its moment.
pub(super) fn draw(dice: &mut Dice, slots: usize) -> Vec<(Duration, Fault)> {
    let mut faults = vec![
        (Duration::from_secs(2), Fault::Store(store(dice))),
        (Duration::from_secs(2), Fault::Broker(broker(dice))),
    ];
    let mut at = Duration::from_secs(3);
    while at < FAULTS_UNTIL {
        faults.push((at, one(dice, slots)));
        at += dice.millis(300, 4_000);
    }
    faults
}

fn one(dice: &mut Dice, slots: usize) -> Fault {
    let slot = dice.index(slots);
    match dice.below(16) {
        0..5 => Fault::Kill(slot, dice.millis(0, 6_000)),
        5..7 => Fault::CutOffBroker(slot, dice.millis(500, 12_000)),
        7..9 => Fault::CutOffStore(slot, dice.millis(500, 12_000)),
        9 => Fault::Wipe,
        10 => Fault::RollBack,
        11 => Fault::Copy,
        12 => Fault::LoseFromTheMiddle(100 + u32::try_from(dice.below(600)).unwrap_or(0)),
        13 | 14 => Fault::Store(store(dice)),
        _ => Fault::Broker(broker(dice)),
    }
}

fn share(dice: &mut Dice, max: u64) -> u32 {
    if dice.one_in(3) { 0 } else { u32::try_from(dice.below(max)).unwrap_or(0) }
}

fn store(dice: &mut Dice) -> Faults {
    Faults {
        lost: share(dice, 60),
        answers_lost: share(dice, 60),
        delayed: share(dice, 120),
        old_reads: share(dice, 120),
        delay_max: if dice.one_in(3) { dice.millis(5_000, 9_000) } else { dice.millis(10, 1_500) },
    }
}

fn broker(dice: &mut Dice) -> BrokerFaults {
    BrokerFaults {
        lost: share(dice, 100),
        refused: share(dice, 60),
        doubled: share(dice, 150),
        delayed: share(dice, 200),
        delay_max: if dice.one_in(3) { dice.millis(5_000, 30_000) } else { dice.millis(10, 2_000) },
    }
}
