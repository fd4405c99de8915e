//! Waiting for the first or for all of several futures.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use crate::OrchestrationContext;

/// The winner of a select over two futures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either2<A, B> {
    /// The first future won.
    First(A),
    /// The second future won.
    Second(B),
}

/// The winner of a select over three futures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either3<A, B, C> {
    /// The first future won.
    First(A),
    /// The second future won.
    Second(B),
    /// The third future won.
    Third(C),
}

impl<A, B> Either2<A, B> {
    /// Whether the first future won.
    pub fn is_first(&self) -> bool {
        matches!(self, Self::First(_))
    }

    /// Whether the second future won.
    pub fn is_second(&self) -> bool {
        matches!(self, Self::Second(_))
    }

    /// Position of the winner, from 0.
    pub fn index(&self) -> usize {
        match self {
            Self::First(_) => 0,
            Self::Second(_) => 1,
        }
    }
}

impl<T> Either2<T, T> {
    /// Position of the winner, from 0, and its value.
    pub fn into_tuple(self) -> (usize, T) {
        match self {
            Self::First(value) => (0, value),
            Self::Second(value) => (1, value),
        }
    }
}

impl<A, B, C> Either3<A, B, C> {
    /// Whether the first future won.
    pub fn is_first(&self) -> bool {
        matches!(self, Self::First(_))
    }

    /// Whether the second future won.
    pub fn is_second(&self) -> bool {
        matches!(self, Self::Second(_))
    }

    /// Whether the third future won.
    pub fn is_third(&self) -> bool {
        matches!(self, Self::Third(_))
    }

    /// Position of the winner, from 0.
    pub fn index(&self) -> usize {
        match self {
            Self::First(_) => 0,
            Self::Second(_) => 1,
            Self::Third(_) => 2,
        }
    }
}

impl<T> Either3<T, T, T> {
    /// Position of the winner, from 0, and its value.
    pub fn into_tuple(self) -> (usize, T) {
        match self {
            Self::First(value) => (0, value),
            Self::Second(value) => (1, value),
            Self::Third(value) => (2, value),
        }
    }
}

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
