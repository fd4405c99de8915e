//! Group commit: one call for all turns. A group that is refused for one of them is committed in halves, a large one in several.

use outlast_core::{InstanceId, Millis, Reason, ShardId};

use super::PostgresStore;
use super::failure::{Failure, code_of, is_collision, is_refusal};
use super::turn_arrays::{Answer, CommitQuery, commit_query};
use crate::{CommitReply, Error, FencedTurn, TurnOutcome, Wake};

/// Times that a group is tried again when other transactions were in its way. A collision is over within milliseconds;
/// after the last one its instances are read again, which is right too, but dearer.
const COLLISIONS_MAX: u32 = 5;
/// A failure that this code raises itself: somebody else applied an inbox row.
const APPLIED_ELSEWHERE: &str = "OL001";

/// Why a group was not written.
enum Refusal {
    /// One of its turns cannot be written.
    Turn(sqlx::Error),
    Broken(Error),
}

impl PostgresStore {
    pub(super) async fn commit_group(&self, group: &[FencedTurn]) -> Result<CommitReply, Error> {
        let mut outcomes = Vec::with_capacity(group.len());
        let mut parts = vec![group];
        while let Some(part) = parts.pop() {
            match self.commit_part(part).await {
                Ok(written) => {
                    let (_, rest) = part.split_at(written.len());
                    outcomes.extend(written);
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                }
                Err(Refusal::Broken(error)) => return Err(error),
                Err(Refusal::Turn(error)) if part.len() == 1 => outcomes.push(refused(&error)),
                Err(Refusal::Turn(_)) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        Ok(CommitReply { now: self.clock.now(), outcomes })
    }

    /// Commits the first turns of a group; the outcomes tell how many.
    async fn commit_part(&self, part: &[FencedTurn]) -> Result<Vec<TurnOutcome>, Refusal> {
        let mut collisions = 0;
        loop {
            let CommitQuery { query, bytes } = match commit_query(part, self.shards) {
                Ok(query) => query,
                Err(bytes) => {
                    return Ok(vec![TurnOutcome::Refused(format!(
                        "its turn has {bytes} bytes, more than one statement carries: keep large data elsewhere and pass references"
                    ))]);
                }
            };
            let answered = self.pools.commits.run_large(bytes, |db| {
                Box::pin(async move {
                    match query.fetch_one(&mut **db).await {
                        Err(error) if !is_refusal(&error) && !is_collision(&error) => Err(Failure::Sql(error)),
                        answer => Ok(answer),
                    }
                })
            });
            let error = match answered.await.map_err(Refusal::Broken)? {
                Ok(answer) => {
                    self.clock.heard(Millis(answer.0.cast_unsigned()));
                    return Ok(outcomes(answer));
                }
                Err(error) => error,
            };
            if !is_collision(&error) {
                return Err(Refusal::Turn(error));
            }
            collisions += 1;
            if collisions > COLLISIONS_MAX {
                return Err(Refusal::Broken(Error::unavailable(Reason::of(error))));
            }
        }
    }
}

fn refused(error: &sqlx::Error) -> TurnOutcome {
    if code_of(error).as_deref() == Some(APPLIED_ELSEWHERE) {
        return TurnOutcome::Conflict;
    }
    TurnOutcome::Refused(error.to_string())
}

fn outcomes((_, outcomes, wake_turn, wake_shard, wake_instance): Answer) -> Vec<TurnOutcome> {
    let mut outcomes: Vec<TurnOutcome> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            1 => TurnOutcome::Committed { wakes: Vec::new() },
            2 => TurnOutcome::Fenced,
            _ => TurnOutcome::Conflict,
        })
        .collect();
    let (turns, shards) = (wake_turn.unwrap_or_default(), wake_shard.unwrap_or_default());
    let woken = turns.into_iter().zip(shards).zip(wake_instance.unwrap_or_default());
    for ((turn, shard), instance) in woken {
        let index = usize::try_from(turn - 1).unwrap_or(usize::MAX);
        if let Some(TurnOutcome::Committed { wakes }) = outcomes.get_mut(index) {
            wakes.push(Wake { shard: ShardId(shard.cast_unsigned()), instance: InstanceId::from(instance) });
        }
    }
    outcomes
}
