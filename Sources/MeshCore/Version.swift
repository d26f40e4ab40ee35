// The one place where the version stands.

/// The version of the agent and of meshctl (Semantic Versioning 2.0.0).
public let meshVersion = "0.1.0"
