// A generator of numbers that look random and can be repeated, for jitter.

/// SplitMix64: 64 bits of state, one multiplication chain per number, the same sequence for a seed.
public struct SplitMix64: RandomNumberGenerator, Sendable {
    /// What the numbers to come follow from: a generator with this seed goes on with them.
    public private(set) var state: UInt64

    /// A generator whose sequence the seed decides.
    public init(seed: UInt64) { state = seed }

    /// The next number.
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
