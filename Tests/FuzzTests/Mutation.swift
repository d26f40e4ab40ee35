// Breaks bytes at random, the same way for the same seed.
import MeshCore

extension SplitMix64 {
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

    /// Two inputs that swap their ends somewhere.
    mutating func spliced(_ head: [UInt8], _ tail: [UInt8]) -> [UInt8] {
        let cut = Int.random(in: 0...head.count, using: &self)
        let from = Int.random(in: 0...tail.count, using: &self)
        return Array(head[..<cut] + tail[from...])
    }
}
