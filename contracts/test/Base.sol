// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ISources} from "../solidity/interfaces/ISources.sol";
import {Sources} from "../solidity/Sources.sol";
import {Studies} from "../solidity/Studies.sol";

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

    function setUp() public virtual {
        vm.warp(NOW);
        sources = new Sources(admin);
        studies = new Studies(address(sources));
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
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("PACS Bridge Studies"),
                keccak256("1"),
                block.chainid,
                address(studies)
            )
        );
    }

    function _signHash(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, keccak256(abi.encodePacked("\x19\x01", _domain(), structHash)));
        return abi.encodePacked(r, s, v);
    }

    function _signDefine(uint256 key, bytes32 id, address of_, address source, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("DefineStudy(bytes32 studyId,address owner,address source,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, of_, source, deadline)));
    }

    function _signTransfer(uint256 key, bytes32 id, address newOwner, uint64 seq, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("TransferStudy(bytes32 studyId,address newOwner,uint64 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, newOwner, seq, deadline)));
    }

    function _signTombstone(uint256 key, bytes32 id, uint64 seq, uint64 deadline) internal view returns (bytes memory) {
        bytes32 typeHash = keccak256("TombstoneStudy(bytes32 studyId,uint64 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, id, seq, deadline)));
    }

    function _defineStudy(address source, bytes32 id) internal {
        bytes memory signature = _signDefine(OWNER_KEY, id, owner, source, NOW);
        vm.prank(source);
        studies.defineStudy(id, owner, NOW, signature);
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
