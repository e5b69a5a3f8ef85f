//! Chance that can be repeated.

/// Numbers that look random and are the same in each run.
pub struct Chance(pub u64);

impl Chance {
    /// From 0 to `limit`, without it.
    pub fn below(&mut self, limit: u64) -> u64 {
        // Marsaglia's xorshift64*; its lowest bits are its weakest.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    /// One of these.
    pub fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}
