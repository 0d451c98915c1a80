// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Define Source: the hospitals and imaging centres that may write to this ledger
/// @notice A *source* is identified for ever by one account, its identity. The identity is admitted by the consortium, then
/// defines itself with its public key and the URL at which it answers retrieval requests. Daily transactions are signed by
/// *operators*: accounts that the identity authorised and that accepted. An operator can be replaced at any time without
/// changing what the source has stored or who it is.
///
/// Inconvenient facts:
/// - The consortium admin can suspend every source. It cannot change what a source said about itself, nor speak for it.
/// - A suspended source keeps its studies and its pieces; nothing on a ledger is ever taken away. It only cannot add more.
/// - Endpoint URLs are public to every member of the network.
/// - `changeKeys` says which TLS key and which OpenPGP key a source uses. Nothing proves that it holds them: who connects finds out.
/// - The consortium can have 65,535 sources, the rejected ones included.
/// - What the identity signs about endpoint or keys may be sent by anybody, so that the identity needs neither funds nor a node. It
/// is good until its deadline, or until the source says anything else about them.
/// - Whoever holds the identity key is the source. There is no recovery for a lost identity key other than admitting a new
///   source; keep it off line and let operators work.
interface ISources {
    /// @notice The consortium admitted `source`: it may now define itself.
    event SourceAdmitted(address indexed source);
    /// @notice The consortium suspended `source`.
    event SourceSuspended(address indexed source);
    /// @notice The consortium lifted the suspension of `source`.
    event SourceReinstated(address indexed source);
    /// @notice `source` defined itself.
    event SourceDefined(address indexed source, bytes publicKey, string endpoint);
    /// @notice `source` moved to another endpoint.
    event EndpointChanged(address indexed source, string endpoint);
    /// @notice `source` answers TLS with the key whose SubjectPublicKeyInfo has SHA-256 `tlsKey` and wants to be written to with
    /// the OpenPGP key `encryptionKey`. Zero or empty: none.
    event KeysChanged(address indexed source, bytes32 tlsKey, bytes encryptionKey);
    /// @notice `source` offered to let `operator` act for it.
    event OperatorAuthorized(address indexed source, address indexed operator);
    /// @notice `operator` now acts for `source`.
    event OperatorAccepted(address indexed source, address indexed operator);
    /// @notice `operator` no longer acts for `source`, or the offer to it was withdrawn.
    event OperatorRevoked(address indexed source, address indexed operator);
    /// @notice `nominee` may become the admin by accepting.
    event AdminNominated(address indexed admin, address indexed nominee);
    /// @notice The consortium is now administered by `admin`.
    event AdminChanged(address indexed previous, address indexed admin);

    /// @notice The caller is not the consortium's admin.
    error NotAdmin(address caller);
    /// @notice The caller was not nominated as admin.
    error NotNominated(address caller);
    /// @notice The zero address was given.
    error ZeroAddress();
    /// @notice `source` was admitted before.
    error AlreadyAdmitted(address source);
    /// @notice `source` was never admitted.
    error NotAdmitted(address source);
    /// @notice `source` is suspended already.
    error AlreadySuspended(address source);
    /// @notice `source` is not suspended.
    error NotSuspended(address source);
    /// @notice `source` has defined itself before; a definition is never overwritten.
    error AlreadyDefined(address source);
    /// @notice `source` has not defined itself.
    error NotDefined(address source);
    /// @notice The public key is not the 64-byte secp256k1 key of the caller.
    error PublicKeyMismatch(address caller);
    /// @notice The endpoint is empty or longer than the limit.
    error EndpointLength(uint256 length);
    /// @notice The OpenPGP key is longer than the limit.
    error EncryptionKeyLength(uint256 length);
    /// @notice `key` acts for `source` already, or is a source itself.
    error KeyInUse(address key, address source);
    /// @notice `operator` was not authorised by `source`.
    error NotAuthorized(address source, address operator);

    /// @notice Admits a source. Admin only.
    function admit(address source) external;
    /// @notice Suspends a source. Admin only.
    function suspend(address source) external;
    /// @notice Lifts a suspension. Admin only.
    function reinstate(address source) external;
    /// @notice Offers the administration to `nominee`, who must accept. Admin only. Zero withdraws the offer.
    function nominateAdmin(address nominee) external;
    /// @notice Takes over the administration. Nominee only.
    function acceptAdmin() external;

    /// @notice Define Source: the caller, once admitted, states its public key (x ‖ y, 64 bytes) and its endpoint. Once only.
    /// The caller becomes its own first operator.
    function defineSource(bytes calldata publicKey, string calldata endpoint) external;
    /// @notice Moves the caller's source to another endpoint. Identity only: an operator cannot redirect retrievals.
    function changeEndpoint(string calldata endpoint) external;
    /// @notice The same on the identity's signature over `ChangeEndpoint(address source,string endpoint,uint32 seq,uint64 deadline)` in
    /// the domain of Studies; anybody may send it. `seq` rises strictly over everything that a source says about its endpoint and keys.
    function changeEndpointSigned(
        address source,
        string calldata endpoint,
        uint32 seq,
        uint64 deadline,
        bytes calldata signature
    ) external;
    /// @notice States the keys by which other bridges know this source: the SHA-256 of the SubjectPublicKeyInfo of its TLS key
    /// (RFC 7469 2.4 counts the same bytes) and its OpenPGP key, of which only the keccak-256 is kept in storage. Zero or empty
    /// withdraws. Identity only.
    function changeKeys(bytes32 tlsKey, bytes calldata encryptionKey) external;
    /// @notice The same on the identity's signature over
    /// `ChangeKeys(address source,bytes32 tlsKey,bytes encryptionKey,uint32 seq,uint64 deadline)`; anybody may send it.
    function changeKeysSigned(
        address source,
        bytes32 tlsKey,
        bytes calldata encryptionKey,
        uint32 seq,
        uint64 deadline,
        bytes calldata signature
    ) external;
    /// @notice Offers `operator` to act for the calling source. Identity only.
    function authorizeOperator(address operator) external;
    /// @notice Starts acting for `source`. The operator itself must call, so that nobody can claim another site's key.
    function acceptOperator(address source) external;
    /// @notice Stops `operator` (or an open offer to it) at once. Identity only; the identity may retire itself this way.
    function revokeOperator(address operator) external;

    /// @notice The source for which `operator` may act now; zero if none, or if that source is suspended.
    function sourceOf(address operator) external view returns (address source);
    /// @notice Whether `source` is admitted, has defined itself and is not suspended.
    function isActive(address source) external view returns (bool);
    /// @notice Whether the consortium suspended `source`. False for a stranger.
    function isSuspended(address source) external view returns (bool);
    /// @notice What `changeKeys` stated last: the TLS key's SHA-256 and the OpenPGP key's keccak-256; zero if none.
    function keysOf(address source) external view returns (bytes32 tlsKey, bytes32 encryptionKey);
    /// @notice The highest number of what `source` said about its endpoint and keys; the next must be higher.
    function sourceSeqOf(address source) external view returns (uint32);
    /// @notice Number of sources ever admitted.
    function sourceCount() external view returns (uint16);
    /// @notice The source admitted as `number`, counted from one; zero if none.
    function sourceAt(uint256 number) external view returns (address source);
    /// @notice Number of studies that `source` defined: its stake in the sense of Patel (2018).
    function stakeOf(address source) external view returns (uint256);
    /// @notice Number of studies defined by all sources. For calls from outside: it adds up all sources, because a common counter
    /// would make every definition dearer.
    function stakeTotal() external view returns (uint256);
    /// @notice What is known about `source`. All empty for a stranger.
    function getSource(address source)
        external
        view
        returns (bool admitted, bool suspended, bool defined, bytes memory publicKey, string memory endpoint);
    /// @notice The 64-byte public key of `source`, empty before it is defined.
    function publicKeyOf(address source) external view returns (bytes memory);
    /// @notice The endpoint of `source`, empty before it is defined.
    function endpointOf(address source) external view returns (string memory);
    /// @notice The consortium's admin.
    function admin() external view returns (address);
    /// @notice The nominated next admin, zero if none.
    function nominee() external view returns (address);
}
