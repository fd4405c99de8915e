//! Which of several futures won.

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
