// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Signed} from "./Signed.sol";
import {ISources} from "./interfaces/ISources.sol";

/// @title Sources
/// @notice See {ISources}.
/// @dev The first admin is a constructor argument kept in storage, not an immutable: the CREATE2 address commits to it (nobody
/// can seize a fresh deployment) while the runtime code, and so its hash, is the same everywhere.
///
/// Deployed together with {Studies} as {Registry}: a definition asks for the source and counts it in slots that it reads anyhow.
abstract contract Sources is ISources, Signed {
    /// @notice Longest endpoint in bytes.
    uint256 public constant ENDPOINT_BYTES_MAX = 512;
    /// @notice Longest OpenPGP key in bytes.
    uint256 public constant ENCRYPTION_KEY_BYTES_MAX = 1024;

    bytes32 private constant CHANGE_ENDPOINT =
        keccak256("ChangeEndpoint(address source,string endpoint,uint32 seq,uint64 deadline)");
    bytes32 private constant CHANGE_KEYS =
        keccak256("ChangeKeys(address source,bytes32 tlsKey,bytes encryptionKey,uint32 seq,uint64 deadline)");

    /// @dev The first six are one slot, which every definition of a study reads and writes.
    struct Source {
        bool admitted;
        bool suspended;
        bool defined;
        uint16 number;
        uint64 studies;
        uint32 seq;
        bytes32 keyX;
        bytes32 keyY;
        bytes32 tlsKey;
        bytes32 encryptionKey;
        string endpoint;
    }

    address public admin;
    uint16 public sourceCount;
    address public nominee;
    mapping(uint256 number => address source) public sourceAt;
    mapping(address source => Source) private _sources;
    mapping(address operator => address source) private _sourceOf;
    mapping(address source => mapping(address operator => bool)) private _offers;

    constructor(address firstAdmin) {
        if (firstAdmin == address(0)) revert ZeroAddress();
        admin = firstAdmin;
        emit AdminChanged(address(0), firstAdmin);
    }

    modifier onlyAdmin() {
        if (msg.sender != admin) revert NotAdmin(msg.sender);
        _;
    }

    modifier onlyDefined() {
        if (!_sources[msg.sender].defined) revert NotDefined(msg.sender);
        _;
    }

    function admit(address source) external onlyAdmin {
        if (source == address(0)) revert ZeroAddress();
        if (_sources[source].admitted) revert AlreadyAdmitted(source);
        if (_sourceOf[source] != address(0)) revert KeyInUse(source, _sourceOf[source]);
        _sources[source].admitted = true;
        _sources[source].number = ++sourceCount;
        sourceAt[sourceCount] = source;
        emit SourceAdmitted(source);
    }

    function suspend(address source) external onlyAdmin {
        if (!_sources[source].admitted) revert NotAdmitted(source);
        if (_sources[source].suspended) revert AlreadySuspended(source);
        _sources[source].suspended = true;
        emit SourceSuspended(source);
    }

    function reinstate(address source) external onlyAdmin {
        if (!_sources[source].suspended) revert NotSuspended(source);
        _sources[source].suspended = false;
        emit SourceReinstated(source);
    }

    function nominateAdmin(address newNominee) external onlyAdmin {
        nominee = newNominee;
        emit AdminNominated(msg.sender, newNominee);
    }

    function acceptAdmin() external {
        if (msg.sender != nominee) revert NotNominated(msg.sender);
        address previous = admin;
        admin = msg.sender;
        nominee = address(0);
        emit AdminChanged(previous, msg.sender);
    }

    function defineSource(bytes calldata publicKey, string calldata endpoint) external {
        Source storage source = _sources[msg.sender];
        if (!source.admitted) revert NotAdmitted(msg.sender);
        if (source.defined) revert AlreadyDefined(msg.sender);
        if (publicKey.length != 64 || address(uint160(uint256(keccak256(publicKey)))) != msg.sender) {
            revert PublicKeyMismatch(msg.sender);
        }
        _checkEndpoint(endpoint);
        source.defined = true;
        source.keyX = bytes32(publicKey[:32]);
        source.keyY = bytes32(publicKey[32:]);
        source.endpoint = endpoint;
        _sourceOf[msg.sender] = msg.sender;
        emit SourceDefined(msg.sender, publicKey, endpoint);
        emit OperatorAccepted(msg.sender, msg.sender);
    }

    function changeEndpoint(string calldata endpoint) external onlyDefined {
        // What was signed before and not sent yet is void.
        ++_sources[msg.sender].seq;
        _setEndpoint(msg.sender, endpoint);
    }

    function changeEndpointSigned(
        address source,
        string calldata endpoint,
        uint32 seq,
        uint64 deadline,
        bytes calldata signature
    ) external {
        bytes32 message = keccak256(abi.encode(CHANGE_ENDPOINT, source, keccak256(bytes(endpoint)), seq, deadline));
        _said(source, message, seq, deadline, signature);
        _setEndpoint(source, endpoint);
    }

    function changeKeys(bytes32 tlsKey, bytes calldata encryptionKey) external onlyDefined {
        ++_sources[msg.sender].seq;
        _setKeys(msg.sender, tlsKey, encryptionKey);
    }

    function changeKeysSigned(
        address source,
        bytes32 tlsKey,
        bytes calldata encryptionKey,
        uint32 seq,
        uint64 deadline,
        bytes calldata signature
    ) external {
        bytes32 message = keccak256(abi.encode(CHANGE_KEYS, source, tlsKey, keccak256(encryptionKey), seq, deadline));
        _said(source, message, seq, deadline, signature);
        _setKeys(source, tlsKey, encryptionKey);
    }

    function authorizeOperator(address operator) external onlyDefined {
        if (operator == address(0)) revert ZeroAddress();
        _offers[msg.sender][operator] = true;
        emit OperatorAuthorized(msg.sender, operator);
    }

    function acceptOperator(address source) external {
        if (!_offers[source][msg.sender]) revert NotAuthorized(source, msg.sender);
        if (_sourceOf[msg.sender] != address(0)) revert KeyInUse(msg.sender, _sourceOf[msg.sender]);
        // An identity acts for itself or for nobody; otherwise one key could speak for two sites.
        if (_sources[msg.sender].admitted && msg.sender != source) revert KeyInUse(msg.sender, msg.sender);
        _offers[source][msg.sender] = false;
        _sourceOf[msg.sender] = source;
        emit OperatorAccepted(source, msg.sender);
    }

    function revokeOperator(address operator) external {
        bool acting = _sourceOf[operator] == msg.sender;
        if (!acting && !_offers[msg.sender][operator]) revert NotAuthorized(msg.sender, operator);
        _offers[msg.sender][operator] = false;
        if (acting) _sourceOf[operator] = address(0);
        emit OperatorRevoked(msg.sender, operator);
    }

    function sourceOf(address operator) public view returns (address) {
        address source = _sourceOf[operator];
        return isActive(source) ? source : address(0);
    }

    function isActive(address source) public view returns (bool) {
        Source storage known = _sources[source];
        return known.defined && !known.suspended;
    }

    function isSuspended(address source) external view returns (bool) {
        return _sources[source].suspended;
    }

    function keysOf(address source) external view returns (bytes32 tlsKey, bytes32 encryptionKey) {
        return (_sources[source].tlsKey, _sources[source].encryptionKey);
    }

    function sourceSeqOf(address source) external view returns (uint32) {
        return _sources[source].seq;
    }

    function stakeOf(address source) external view returns (uint256) {
        return _sources[source].studies;
    }

    function stakeTotal() external view returns (uint256 total) {
        for (uint256 number = 1; number <= sourceCount; ++number) {
            total += _sources[sourceAt[number]].studies;
        }
    }

    function getSource(address source)
        external
        view
        returns (bool admitted, bool suspended, bool defined, bytes memory publicKey, string memory endpoint)
    {
        Source storage known = _sources[source];
        return (known.admitted, known.suspended, known.defined, publicKeyOf(source), known.endpoint);
    }

    function publicKeyOf(address source) public view returns (bytes memory) {
        Source storage known = _sources[source];
        return known.defined ? bytes.concat(known.keyX, known.keyY) : bytes("");
    }

    function endpointOf(address source) external view returns (string memory) {
        return _sources[source].endpoint;
    }

    function _numberOf(address source) internal view returns (uint16) {
        return _sources[source].number;
    }

    /// @dev Counts a definition; the number of the source in return.
    function _countStudy(address source) internal returns (uint16) {
        Source storage known = _sources[source];
        uint16 number = known.number;
        // Cannot reach 2^64 by ones.
        unchecked {
            ++known.studies;
        }
        return number;
    }

    /// @dev Reverts unless the identity of a defined source says `message` as its number `seq`.
    function _said(address source, bytes32 message, uint32 seq, uint64 deadline, bytes calldata signature) private {
        Source storage known = _sources[source];
        if (!known.defined) revert NotDefined(source);
        if (seq <= known.seq) revert SeqNotRising(known.seq, seq);
        _checkSigned(source, message, deadline, signature);
        known.seq = seq;
    }

    function _setEndpoint(address source, string calldata endpoint) private {
        _checkEndpoint(endpoint);
        _sources[source].endpoint = endpoint;
        emit EndpointChanged(source, endpoint);
    }

    function _setKeys(address source, bytes32 tlsKey, bytes calldata encryptionKey) private {
        if (encryptionKey.length > ENCRYPTION_KEY_BYTES_MAX) revert EncryptionKeyLength(encryptionKey.length);
        _sources[source].tlsKey = tlsKey;
        _sources[source].encryptionKey = encryptionKey.length == 0 ? bytes32(0) : keccak256(encryptionKey);
        emit KeysChanged(source, tlsKey, encryptionKey);
    }

    function _checkEndpoint(string calldata endpoint) private pure {
        uint256 length = bytes(endpoint).length;
        if (length == 0 || length > ENDPOINT_BYTES_MAX) revert EndpointLength(length);
    }
}
