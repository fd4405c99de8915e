//! Waiting for the first or for all of several futures.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use crate::{Either2, Either3, OrchestrationContext};

impl OrchestrationContext {
    /// Waits for the first of two. The winner is the one whose completion comes first in history; argument order breaks
    /// ties. The loser is dropped, which cancels it; pass `&mut future` to keep it.
    pub async fn select2<T1, T2, F1, F2>(&self, first: F1, second: F2) -> Either2<T1, T2>
    where
        F1: Future<Output = T1>,
        F2: Future<Output = T2>,
    {
        let (mut first, mut second) = (pin!(first), pin!(second));
        poll_fn(|cx| {
            self.journal.in_completion_order(|| {
                if let Poll::Ready(value) = first.as_mut().poll(cx) {
                    return Poll::Ready(Either2::First(value));
                }
                second.as_mut().poll(cx).map(Either2::Second)
            })
        })
        .await
    }

    /// Waits for the first of three, like [`OrchestrationContext::select2`].
    pub async fn select3<T1, T2, T3, F1, F2, F3>(&self, first: F1, second: F2, third: F3) -> Either3<T1, T2, T3>
    where
        F1: Future<Output = T1>,
        F2: Future<Output = T2>,
        F3: Future<Output = T3>,
    {
        let (mut first, mut second, mut third) = (pin!(first), pin!(second), pin!(third));
        poll_fn(|cx| {
            self.journal.in_completion_order(|| {
                if let Poll::Ready(value) = first.as_mut().poll(cx) {
                    return Poll::Ready(Either3::First(value));
                }
                if let Poll::Ready(value) = second.as_mut().poll(cx) {
                    return Poll::Ready(Either3::Second(value));
                }
                third.as_mut().poll(cx).map(Either3::Third)
            })
        })
        .await
    }

    /// Waits for all; results in the order of the arguments. Any number: a completion costs the same however many wait.
    pub async fn join<T, F>(&self, futures: Vec<F>) -> Vec<T>
    where
        F: Future<Output = T>,
    {
        futures::future::join_all(futures).await
    }

    /// Waits for both.
    pub async fn join2<T1, T2, F1, F2>(&self, first: F1, second: F2) -> (T1, T2)
    where
        F1: Future<Output = T1>,
        F2: Future<Output = T2>,
    {
        futures::future::join(first, second).await
    }

    /// Waits for all three.
    pub async fn join3<T1, T2, T3, F1, F2, F3>(&self, first: F1, second: F2, third: F3) -> (T1, T2, T3)
    where
        F1: Future<Output = T1>,
        F2: Future<Output = T2>,
        F3: Future<Output = T3>,
    {
        futures::future::join3(first, second, third).await
    }
}
