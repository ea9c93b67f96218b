//! Whether a thread that waits for the sockets looks at them for a moment before it sleeps.
//!
//! ```text
//!             a wait was short              a wait was long
//!   sleeps -------------------> looks -----------------------> sleeps
//! ```
//! To wake a sleeping thread takes longer than a small task: 5 us where nothing else runs, and 40 us in a virtual machine
//! whose idle processors are given to others. Who asks again as soon as it is answered, and who answers it, need not
//! sleep in between. A thread whose wait ends soon looks first the next time; one that has waited for long sleeps at once
//! until a wait is short again, so that no more than one look is in vain whatever it waits for.

use std::time::Duration;

/// A look that took this long let others run: the processor is not idle, and is theirs.
const GAVE_WAY: Duration = Duration::from_micros(20);

/// See the top of this file.
#[derive(Debug, Clone, Copy)]
pub struct Eagerness {
    limit: Duration,
    is_eager: bool,
}

impl Eagerness {
    /// Looks for at most `limit`, and never if that is zero.
    pub const fn new(limit: Duration) -> Self {
        Self { limit, is_eager: false }
    }

    /// How long to look before sleeping.
    pub const fn looking_time(&self) -> Duration {
        if self.is_eager { self.limit } else { Duration::ZERO }
    }

    /// A wait has ended after this long, looking and sleeping.
    pub fn on_end(&mut self, waited: Duration) {
        self.is_eager = waited < self.limit;
    }

    /// Whether to look again: `before` and `now` are how long was looked before and after the last look.
    pub fn goes_on(looking_time: Duration, before: Duration, now: Duration) -> bool {
        now < looking_time && now.saturating_sub(before) < GAVE_WAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(number: u64) -> Duration {
        Duration::from_micros(number)
    }

    #[test]
    fn short_waits_make_it_look_and_a_long_one_makes_it_sleep() {
        let mut eagerness = Eagerness::new(us(100));
        assert_eq!(eagerness.looking_time(), us(0));
        eagerness.on_end(us(80));
        assert_eq!(eagerness.looking_time(), us(100));
        eagerness.on_end(us(99));
        assert_eq!(eagerness.looking_time(), us(100));
        eagerness.on_end(us(100));
        assert_eq!(eagerness.looking_time(), us(0));
    }

    #[test]
    fn without_a_limit_it_never_looks() {
        let mut eagerness = Eagerness::new(Duration::ZERO);
        eagerness.on_end(Duration::ZERO);
        assert_eq!(eagerness.looking_time(), Duration::ZERO);
    }

    #[test]
    fn it_looks_until_its_time_is_over_or_others_have_run() {
        assert!(Eagerness::goes_on(us(100), us(0), us(3)));
        assert!(!Eagerness::goes_on(us(100), us(98), us(101)));
        assert!(!Eagerness::goes_on(us(100), us(10), us(40)));
    }
}
