//! Which copies leave so that another one fits. Pure: who calls it has looked at the folder.

use super::lease::CopyId;

/// A copy that is there, or on its way.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) id: CopyId,
    pub(super) bytes: u64,
    /// When it was last used, in milliseconds of the wall clock.
    pub(super) used_ms: u64,
    /// Whether an instance may open it, or somebody copies it just now.
    pub(super) is_in_use: bool,
}

/// What there is to do for a copy of so many bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Remove these, the one that was used longest ago first.
    Without(Vec<CopyId>),
    /// It would not fit if it were alone.
    TooLarge,
    /// It would fit, but for this many bytes in use.
    InUse(u64),
}

/// Makes room for `more` bytes within `budget`. What is in use stays, and no more leaves than has to.
pub(super) fn make_room(mut kept: Vec<Kept>, more: u64, budget: u64) -> Room {
    if more > budget {
        return Room::TooLarge;
    }
    let in_use = kept.iter().filter(|kept| kept.is_in_use).map(|kept| kept.bytes).fold(0, u64::saturating_add);
    if in_use.saturating_add(more) > budget {
        return Room::InUse(in_use);
    }
    let mut total = kept.iter().map(|kept| kept.bytes).fold(0, u64::saturating_add);
    kept.retain(|kept| !kept.is_in_use);
    kept.sort_by(|one, other| (one.used_ms, &one.id).cmp(&(other.used_ms, &other.id)));
    let mut leaving = Vec::new();
    for kept in kept {
        if total.saturating_add(more) <= budget {
            break;
        }
        total -= kept.bytes;
        leaving.push(kept.id);
    }
    Room::Without(leaving)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(copies: &[(&str, u64, u64, bool)]) -> Vec<Kept> {
        let kept = |(name, bytes, used_ms, is_in_use): &(&str, u64, u64, bool)| Kept {
            id: CopyId::new("e", name),
            bytes: *bytes,
            used_ms: *used_ms,
            is_in_use: *is_in_use,
        };
        copies.iter().map(kept).collect()
    }

    #[test]
    fn the_least_recently_used_leave_and_no_more_than_has_to() {
        let copies = [("new", 40, 9, false), ("old", 30, 1, false), ("used", 20, 0, true), ("middle", 10, 5, false)];
        let leaving = |more, budget| match make_room(kept(&copies), more, budget) {
            Room::Without(ids) => ids.iter().map(|id| id.name().to_owned()).collect::<Vec<_>>(),
            other => vec![format!("{other:?}")],
        };
        assert_eq!(leaving(10, 110), [""; 0]);
        assert_eq!(leaving(11, 110), ["old"]);
        assert_eq!(leaving(40, 110), ["old"]);
        assert_eq!(leaving(41, 110), ["old", "middle"]);
        assert_eq!(leaving(90, 110), ["old", "middle", "new"]);
        assert_eq!(leaving(91, 110), ["InUse(20)"]);
        assert_eq!(leaving(111, 110), ["TooLarge"]);
        // More is there than may be, since the budget was lowered.
        assert_eq!(leaving(0, 60), ["old", "middle"]);
    }

    #[test]
    fn whatever_is_there_what_stays_fits_and_what_is_in_use_stays() {
        // A small world, whole: three copies of up to three bytes, each of two times, in use or not.
        let one = |seed: u64| (1 + seed % 3, seed / 3 % 2, seed / 6 % 2 == 1);
        for world in 0..12_u64.pow(3) {
            let seeds = [world % 12, world / 12 % 12, world / 144];
            let copies: Vec<Kept> = seeds
                .iter()
                .enumerate()
                .map(|(at, seed)| {
                    let (bytes, used_ms, is_in_use) = one(*seed);
                    Kept { id: CopyId::new("e", &at.to_string()), bytes, used_ms, is_in_use }
                })
                .collect();
            for (more, budget) in (0..5).flat_map(|more| (0..10).map(move |budget| (more, budget))) {
                let Room::Without(leaving) = make_room(copies.clone(), more, budget) else { continue };
                let stays = |kept: &&Kept| !leaving.contains(&kept.id);
                let left: u64 = copies.iter().filter(stays).map(|kept| kept.bytes).sum();
                assert!(left + more <= budget, "{copies:?} {more} {budget}");
                assert!(copies.iter().filter(|kept| kept.is_in_use).all(|kept| stays(&kept)));
                // Without the last of them it would not have fitted.
                let last = leaving.last().and_then(|id| copies.iter().find(|kept| kept.id == *id));
                assert!(last.is_none_or(|last| left + last.bytes + more > budget), "{copies:?} {more} {budget}");
            }
        }
    }
}
