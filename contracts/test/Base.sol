// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ISources} from "../solidity/interfaces/ISources.sol";
import {Sources} from "../solidity/Sources.sol";
import {Studies} from "../solidity/Studies.sol";
import {Registry} from "../solidity/Registry.sol";
import {Consent} from "../solidity/Consent.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";

/// @dev The cheat codes that these tests use.
interface Vm {
    struct Wallet {
        address addr;
        uint256 publicKeyX;
        uint256 publicKeyY;
        uint256 privateKey;
    }

    function addr(uint256 key) external pure returns (address);
    function createWallet(uint256 key) external returns (Wallet memory);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function prank(address sender) external;
    function expectRevert(bytes calldata data) external;
    function expectRevert(bytes4 selector) external;
    function expectRevert() external;
    function expectEmit(bool, bool, bool, bool, address emitter) external;
    function assume(bool condition) external pure;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function roll(uint256 height) external;
    function store(address target, bytes32 slot, bytes32 value) external;
}

/// @dev A consortium with an admin, two sources (alice, bob) and a stranger (mallory).
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    uint256 internal constant SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint64 internal constant NOW = 1_800_000_000;

    address internal immutable admin = vm.addr(100);
    address internal immutable alice = vm.addr(101);
    address internal immutable bob = vm.addr(102);
    address internal immutable mallory = vm.addr(103);
    uint256 internal constant OWNER_KEY = 200;
    address internal immutable owner = vm.addr(OWNER_KEY);

    Sources internal sources;
    Studies internal studies;
    Consent internal consent;

    function setUp() public virtual {
        vm.warp(NOW);
        Registry registry = new Registry(admin);
        sources = registry;
        studies = registry;
        consent = new Consent(address(registry));
        _enrol(101);
        _enrol(102);
    }

    function _publicKey(uint256 key) internal returns (bytes memory) {
        Vm.Wallet memory wallet = vm.createWallet(key);
        return abi.encodePacked(wallet.publicKeyX, wallet.publicKeyY);
    }

    /// @dev Admits and defines the source with this key.
    function _enrol(uint256 key) internal {
        vm.prank(admin);
        sources.admit(vm.addr(key));
        bytes memory publicKey = _publicKey(key);
        vm.prank(vm.addr(key));
        sources.defineSource(publicKey, "https://source.example/iti43");
    }

    function _suspend(address source) internal {
        vm.prank(admin);
        sources.suspend(source);
    }

    function _domain() internal view returns (bytes32) {
        return _domainOf("PACS Bridge Studies", address(studies));
    }

    function _domainOf(string memory name, address verifier) internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(name)),
                keccak256("1"),
                block.chainid,
                verifier
            )
        );
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", _domain(), structHash));
    }

    function _consentDigest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(
            abi.encodePacked("\x19\x01", _domainOf("PACS Bridge Consent", address(consent)), structHash)
        );
    }

    function _sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function _signHash(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        return _sign(key, _digest(structHash));
    }

    // ---- messages of Studies

    function _defineHash(bytes32 id, address of_, address source, bool custodial, bytes32 derivedFrom, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        bytes32 typeHash = keccak256(
            "DefineStudy(bytes32 studyId,address owner,address source,bool custodial,bytes32 derivedFrom,uint64 deadline)"
        );
        return keccak256(abi.encode(typeHash, id, of_, source, custodial, derivedFrom, deadline));
    }

    function _signDefine(uint256 key, bytes32 id, address of_, address source, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        return _signHash(key, _defineHash(id, of_, source, false, 0, deadline));
    }

    function _signTransfer(uint256 key, bytes32 id, address newOwner, uint32 seq, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash =
            keccak256("TransferStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, newOwner, false, seq, deadline)));
    }

    function _signTombstone(uint256 key, bytes32 id, uint32 seq, uint64 deadline) internal view returns (bytes memory) {
        bytes32 typeHash = keccak256("TombstoneStudy(bytes32 studyId,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, seq, deadline)));
    }

    function _signGuardians(uint256 key, bytes32 id, bytes32 guardians, uint32 seq, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("NameGuardians(bytes32 studyId,bytes32 guardians,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, guardians, seq, deadline)));
    }

    function _signVeto(uint256 key, bytes32 id, uint32 seq, uint64 deadline) internal view returns (bytes memory) {
        bytes32 typeHash = keccak256("VetoRecovery(bytes32 studyId,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, seq, deadline)));
    }

    function _recoverHash(bytes32 id, address newOwner, uint32 seq, uint64 deadline) internal pure returns (bytes32) {
        bytes32 typeHash =
            keccak256("RecoverStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)");
        return keccak256(abi.encode(typeHash, id, newOwner, false, seq, deadline));
    }

    function _defineStudy(address source, bytes32 id) internal {
        bytes memory signature = _signDefine(OWNER_KEY, id, owner, source, NOW);
        vm.prank(source);
        studies.defineStudy(id, owner, false, 0, NOW, signature);
    }

    // ---- messages of Consent

    bytes internal constant PGP_KEY = "an OpenPGP key";

    /// @dev The whole study, in full, from now for 1,000 seconds, for anything; the signature is good now only.
    function _allowance(bytes32 id, address grantee, uint32 seq) internal pure returns (IConsent.Allowance memory a) {
        a.studyId = id;
        a.grantee = grantee;
        a.mode = IConsent.Mode.Full;
        a.notBefore = NOW;
        a.notAfter = NOW + 1000;
        a.notes = keccak256("notes");
        a.encryptionKey = keccak256(PGP_KEY);
        a.seq = seq;
        a.deadline = NOW;
    }

    /// @dev Field by field, so that the contract's shorter way is held against EIP-712's.
    function _allowHash(IConsent.Allowance memory a) internal pure returns (bytes32) {
        bytes32 typeHash = keccak256(
            "Allow(bytes32 studyId,address grantee,bytes32 series,uint8 mode,uint64 notBefore,uint64 notAfter,uint16 purpose,bytes32 notes,bytes32 encryptionKey,uint32 seq,uint64 deadline)"
        );
        bytes memory head = abi.encode(typeHash, a.studyId, a.grantee, a.series, uint256(a.mode));
        bytes memory middle = abi.encode(a.notBefore, a.notAfter, uint256(a.purpose), a.notes);
        return keccak256(bytes.concat(head, middle, abi.encode(a.encryptionKey, uint256(a.seq), a.deadline)));
    }

    function _signAllow(uint256 key, IConsent.Allowance memory a) internal view returns (bytes memory) {
        return _sign(key, _consentDigest(_allowHash(a)));
    }

    function _allow(uint256 key, IConsent.Allowance memory a) internal {
        consent.allow(a, _signAllow(key, a));
    }

    function _signDeny(uint256 key, bytes32 id, address grantee, uint16 reason, uint32 seq, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash =
            keccak256("Deny(bytes32 studyId,address grantee,uint16 reason,bytes32 notes,uint32 seq,uint64 deadline)");
        return _sign(key, _consentDigest(keccak256(abi.encode(typeHash, id, grantee, reason, bytes32(0), seq, deadline))));
    }

    function _signRevoke(uint256 key, bytes32 id, address grantee, uint32 seq, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("Revoke(bytes32 studyId,address grantee,uint32 seq,uint64 deadline)");
        return _sign(key, _consentDigest(keccak256(abi.encode(typeHash, id, grantee, seq, deadline))));
    }

    function _revoke(uint256 key, bytes32 id, address grantee, uint32 seq) internal {
        consent.revoke(id, grantee, seq, NOW, _signRevoke(key, id, grantee, seq, NOW));
    }

    function _signEmergency(uint256 key, IConsent.Emergency memory e, address source, address operator)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256(
            "ApproveEmergency(bytes32 studyId,address source,address operator,uint16 reason,bytes32 notes,uint64 until,uint64 deadline)"
        );
        return _sign(
            key,
            _consentDigest(
                keccak256(abi.encode(typeHash, e.studyId, source, operator, e.reason, e.notes, e.until, e.deadline))
            )
        );
    }

    function _emergency(bytes32 id, uint64 until) internal pure returns (IConsent.Emergency memory e) {
        e.studyId = id;
        e.reason = 1;
        e.until = until;
        e.deadline = NOW;
    }

    function _addOperator(address source, uint256 key) internal returns (address operator) {
        operator = vm.addr(key);
        vm.prank(source);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        sources.acceptOperator(source);
    }

    function _mode(bytes32 id, address grantee) internal view returns (IConsent.Mode mode) {
        (mode,,) = consent.isAllowed(id, 0, grantee, 0);
    }

    function _granted(bytes32 id, address grantee) internal view returns (bool) {
        return _mode(id, grantee) != IConsent.Mode.None;
    }

    function _state(bytes32 id, address grantee) internal view returns (IConsent.Trace state) {
        (state,,) = consent.trace(id, grantee);
    }

    function assertEq(IConsent.Trace a, IConsent.Trace b) internal pure {
        require(a == b, "traces differ");
    }

    function assertEq(uint256 a, uint256 b) internal pure {
        require(a == b, "numbers differ");
    }

    function assertEq(address a, address b) internal pure {
        require(a == b, "addresses differ");
    }

    function assertEq(bytes32 a, bytes32 b) internal pure {
        require(a == b, "words differ");
    }

    function assertEq(bytes memory a, bytes memory b) internal pure {
        require(keccak256(a) == keccak256(b), "bytes differ");
    }

    function assertTrue(bool a) internal pure {
        require(a, "not true");
    }

    function assertFalse(bool a) internal pure {
        require(!a, "not false");
    }
}
