//! Random programs, and what must come out of them.

use serde::{Deserialize, Serialize};

use super::dice::Dice;

/// Steps of a program at most, and how deep children may be.
const STEPS_MAX: u64 = 6;
const DEPTH_MAX: u64 = 2;

/// What an orchestration is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    /// How often it begins anew afterwards, with the same steps.
    pub(super) again: u32,
    /// Fails at the end.
    pub(super) fails: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    Activity(Work),
    /// All at once.
    Join(Vec<Work>),
    Timer(u64),
    /// The timer may win: then the activity is dropped.
    Race(Work, u64),
    Child(Box<Program>),
    /// Dropped in the turn that scheduled it, or after a while.
    DroppedChild(Box<Program>, u64),
    Detached(Box<Program>),
    /// An event that the driver raises until it is taken.
    Wait,
    /// So many messages of the queue, which the driver numbers.
    Dequeue(u32),
    Kv(u32),
    Status(u32),
}

/// What an activity is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) takes_ms: u64,
    pub(super) ends: Ends,
    pub(super) tag: Option<u8>,
    pub(super) session: Option<u8>,
    pub(super) bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ends {
    Well,
    /// With an error, whichever attempt it is.
    Badly,
    /// With an error before this attempt of a retry policy.
    WellAt(u32),
    /// By a panic.
    Panics,
}

/// Tags that some worker serves at all times once all is healed.
pub(super) const TAGS: [&str; 2] = ["gpu", "disk"];
/// Attempts of an activity that is tried again.
pub(super) const ATTEMPTS_MAX: u32 = 3;

pub(super) fn draw(dice: &mut Dice, depth: u64) -> Program {
    let count = 1 + dice.below(STEPS_MAX);
    let steps = (0..count).map(|_| step(dice, depth)).collect();
    let again = if depth == 0 && dice.one_in(4) { 1 + u32::try_from(dice.below(2)).unwrap_or(0) } else { 0 };
    Program { steps, again, fails: dice.one_in(10) }
}

fn step(dice: &mut Dice, depth: u64) -> Step {
    let may_nest = depth < DEPTH_MAX;
    match dice.below(20) {
        0..6 => Step::Activity(work(dice)),
        6..8 => Step::Join((0..2 + dice.below(4)).map(|_| work(dice)).collect()),
        8..10 => Step::Timer(dice.below(4_000)),
        10 => Step::Race(work(dice), dice.below(2_000)),
        11 | 12 if may_nest => Step::Child(Box::new(draw(dice, depth + 1))),
        13 if may_nest => Step::DroppedChild(Box::new(draw(dice, depth + 1)), dice.below(2) * dice.below(3_000)),
        14 if may_nest => Step::Detached(Box::new(draw(dice, depth + 1))),
        15 if depth == 0 => Step::Wait,
        16 if depth == 0 => Step::Dequeue(1 + u32::try_from(dice.below(4)).unwrap_or(0)),
        17 => Step::Status(u32::try_from(dice.below(100)).unwrap_or(0)),
        _ => Step::Kv(u32::try_from(dice.below(100)).unwrap_or(0)),
    }
}

fn work(dice: &mut Dice) -> Work {
    let ends = match dice.below(10) {
        0 => Ends::Badly,
        1 => Ends::Panics,
        2 => Ends::WellAt(1 + u32::try_from(dice.below(u64::from(ATTEMPTS_MAX))).unwrap_or(0)),
        _ => Ends::Well,
    };
    let takes_ms = if dice.one_in(8) { dice.below(8_000) } else { dice.below(300) };
    let tag = dice.one_in(6).then(|| u8::try_from(dice.below(TAGS.len() as u64)).unwrap_or(0));
    let session = dice.one_in(5).then(|| u8::try_from(dice.below(3)).unwrap_or(0));
    let bytes = if dice.one_in(8) { 600 + dice.index(2_000) } else { dice.index(40) };
    Work { takes_ms, ends, tag, session, bytes }
}

impl Work {
    /// The text that it comes to, in the place of its step.
    pub(super) fn expected(&self) -> &'static str {
        match self.ends {
            Ends::Well | Ends::WellAt(_) => "done;",
            Ends::Badly => "failed;",
            Ends::Panics => "panicked;",
        }
    }
}

impl Program {
    /// What one execution puts together; `None` stands for what may come out either way.
    pub(super) fn expected(&self) -> Result<Vec<Option<String>>, String> {
        if self.fails {
            return Err("it was to fail".to_owned());
        }
        Ok(self.steps.iter().map(Step::expected).collect())
    }

    /// Whether `output` is one of those that it may have.
    pub(super) fn may_end_with(&self, output: &Result<String, String>) -> bool {
        match (self.expected(), output) {
            (Err(expected), Err(text)) => text.contains(&expected),
            (Ok(parts), Ok(output)) => {
                let mut rest = output.as_str();
                for part in parts {
                    let found = match part {
                        Some(part) => rest.strip_prefix(part.as_str()),
                        // A race: the activity's text, or the timer's.
                        None => rest.split_once(';').map(|(_, rest)| rest),
                    };
                    let Some(found) = found else { return false };
                    rest = found;
                }
                rest.is_empty()
            }
            _ => false,
        }
    }

    /// How many messages it takes from the queue in all.
    pub(super) fn messages(&self) -> u32 {
        let of = |step: &Step| if let Step::Dequeue(count) = step { *count } else { 0 };
        self.steps.iter().map(of).sum::<u32>() * (self.again + 1)
    }

    /// Whether it needs the driver in order to go on.
    pub(super) fn waits(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Wait | Step::Dequeue(_)))
    }
}

impl Step {
    fn expected(&self) -> Option<String> {
        Some(match self {
            Self::Activity(work) => work.expected().to_owned(),
            Self::Join(all) => all.iter().map(Work::expected).collect(),
            Self::Timer(_) => "slept;".to_owned(),
            Self::Race(..) => return None,
            Self::Child(program) => match program.expected() {
                Ok(_) => "child;".to_owned(),
                Err(_) => "child failed;".to_owned(),
            },
            Self::DroppedChild(..) => "dropped;".to_owned(),
            Self::Detached(_) => "detached;".to_owned(),
            Self::Wait => "event;".to_owned(),
            Self::Dequeue(count) => format!("{count} messages;"),
            Self::Kv(value) => format!("kv {value};"),
            Self::Status(value) => format!("status {value};"),
        })
    }
}
