//! Which checkpoints to give up when they take too much disk.
//!
//! Recent history is visited more often than old history, so the gap that may open around a
//! checkpoint grows with its age: the next to go is always the one for which
//! *(gap it would leave) ÷ (its age)* is smallest. What remains is spaced about geometrically, and
//! the worst distance to run forward from a checkpoint stays proportional to how long ago it was.
//! The first and the last checkpoint stay.

use base::Position;

/// The order of giving up: indexes into `positions` (ascending), at most `count` of them.
pub(crate) fn victims(positions: &[Position], count: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..positions.len()).collect();
    let mut given_up = Vec::new();
    let Some(newest) = positions.last().copied() else { return given_up };
    while given_up.len() < count && left.len() > 2 {
        let score = |at: usize| {
            let gap = positions[left[at + 1]].since(positions[left[at - 1]]);
            let age = newest.since(positions[left[at]]).max(1);
            gap as f64 / age as f64
        };
        let weakest = (1..left.len() - 1).min_by(|&a, &b| score(a).total_cmp(&score(b)));
        given_up.push(left.remove(weakest.expect("more than two are left")));
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_history_is_thinned_more_than_recent_history() {
        let positions: Vec<Position> = (0..1000).map(|i| Position::from_count(i * 1000)).collect();
        let given_up = victims(&positions, 950);
        let mut kept: Vec<usize> = (0..1000).filter(|i| !given_up.contains(i)).collect();
        assert_eq!(kept.len(), 50);
        assert_eq!((kept[0], kept[49]), (0, 999));
        kept.reverse();
        for pair in kept.windows(2).skip(1) {
            let (gap, age) = (pair[0] - pair[1], 999 - pair[1]);
            assert!(gap <= 1 + age / 3, "a gap of {gap} at age {age}");
        }
    }

    #[test]
    fn the_first_and_last_checkpoint_are_never_given_up() {
        let positions: Vec<Position> = [0, 5, 5, 5].map(Position::from_count).to_vec();
        let mut given_up = victims(&positions, 100);
        given_up.sort_unstable();
        assert_eq!(given_up, [1, 2]);
        assert!(victims(&[], 3).is_empty());
    }
}
