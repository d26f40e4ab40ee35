// Random numbers that are the same in every run, and bytes broken with their help.

/// SplitMix64.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
        return mixed ^ mixed >> 31
    }

    /// The bytes with one to four changes: replaced, inserted, removed, repeated, cut off or swapped for
    /// one of `words`.
    mutating func mutated(_ original: [UInt8], words: [String]) -> [UInt8] {
        var bytes = original
        for _ in 0..<Int.random(in: 1...4, using: &self) {
            let place = bytes.isEmpty ? 0 : Int.random(in: 0..<bytes.count, using: &self)
            let end = min(bytes.count, place + Int.random(in: 0...12, using: &self))
            switch Int.random(in: 0..<7, using: &self) {
            case 0 where !bytes.isEmpty: bytes[place] = UInt8.random(in: .min ... .max, using: &self)
            case 1: bytes.insert(UInt8.random(in: .min ... .max, using: &self), at: place)
            case 2: bytes.removeSubrange(place..<end)
            case 3: bytes.insert(contentsOf: bytes[place..<end], at: place)
            case 4: bytes.removeSubrange(place...)
            case 5 where !bytes.isEmpty: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &self)
            default: bytes.replaceSubrange(place..<end, with: (words.randomElement(using: &self) ?? "").utf8)
            }
        }
        return bytes
    }
}
