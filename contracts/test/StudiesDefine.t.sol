// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";
import {Registry} from "../solidity/Registry.sol";

/// @dev An EIP-1271 owner that agrees to exactly one digest.
contract Wallet {
    bytes32 public agreed;

    function agree(bytes32 digest) external {
        agreed = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == agreed ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}

contract StudiesDefineTest is Base {
    bytes32 internal constant ID = keccak256("salt and uid");

    function test_RevertWhen_zero() public {
        vm.prank(alice);
        vm.expectRevert(IStudies.ZeroValue.selector);
        studies.defineStudy(0, owner, false, 0, NOW, "");
        vm.prank(alice);
        vm.expectRevert(IStudies.ZeroValue.selector);
        studies.defineStudy(ID, address(0), false, 0, NOW, "");
    }

    function test_RevertWhen_theSenderIsNoSource() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, mallory, NOW);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotSource.selector, mallory));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
        _suspend(alice);
        signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotSource.selector, alice));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
    }

    function test_RevertWhen_defined() public {
        _defineStudy(alice, ID);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, bob, NOW);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyExists.selector, ID));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
    }

    function testFuzz_RevertWhen_late(uint64 deadline) public {
        vm.assume(deadline < NOW);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, deadline);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, deadline));
        studies.defineStudy(ID, owner, false, 0, deadline, signature);
    }

    function testFuzz_RevertWhen_theOwnerDidNotSign(bytes memory signature) public {
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
    }

    /// The signature names the source: another cannot use it.
    function test_RevertWhen_anotherSourceUsesTheSignature() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
    }

    function test_RevertWhen_signedForAnotherChainOrContract() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.chainId(4242);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
        vm.chainId(31337);
        Registry other = new Registry(admin);
        vm.prank(admin);
        other.admit(alice);
        bytes memory publicKey = _publicKey(101);
        vm.prank(alice);
        other.defineSource(publicKey, "https://source.example/iti43");
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        other.defineStudy(ID, owner, false, 0, NOW, signature);
    }

    function testFuzz_bothPartiesDefine(bytes32 id, uint256 key, uint64 ahead) public {
        vm.assume(id != 0);
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        uint64 deadline = NOW + ahead % 1_000_000;
        bytes memory signature = _signDefine(key, id, vm.addr(key), alice, deadline);
        vm.prank(alice);
        studies.defineStudy(id, vm.addr(key), false, 0, deadline, signature);
        assertEq(studies.ownerOf(id), vm.addr(key));
        assertEq(studies.studySourceOf(id), alice);
        assertEq(studies.stakeOf(alice), 1);
        assertEq(studies.stakeOf(bob), 0);
        assertEq(studies.stakeTotal(), 1);
    }

    function test_aContractCanBeTheOwner() public {
        Wallet wallet = new Wallet();
        bytes32 message = _defineHash(ID, address(wallet), alice, false, 0, NOW);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, address(wallet)));
        studies.defineStudy(ID, address(wallet), false, 0, NOW, "any");
        wallet.agree(keccak256(abi.encodePacked("\x19\x01", _domain(), message)));
        vm.prank(alice);
        studies.defineStudy(ID, address(wallet), false, 0, NOW, "any");
        assertEq(studies.ownerOf(ID), address(wallet));
        assertTrue(studies.ownerKindOf(ID) == IStudies.OwnerKind.Contract);
    }

    /// Whether the source holds the key is part of what is signed: neither side can claim the other thing.
    function test_theKindOfOwnerIsSignedAndSeen() public {
        bytes memory signature = _signHash(OWNER_KEY, _defineHash(ID, owner, alice, true, 0, NOW));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
        vm.prank(alice);
        studies.defineStudy(ID, owner, true, 0, NOW, signature);
        assertTrue(studies.ownerKindOf(ID) == IStudies.OwnerKind.Custodial);
        _defineStudy(alice, "own");
        assertTrue(studies.ownerKindOf("own") == IStudies.OwnerKind.Own);
        assertTrue(studies.ownerKindOf("unknown") == IStudies.OwnerKind.None);
        // The patient claims the study: it is no longer in the hospital's hand.
        studies.transfer(ID, vm.addr(201), false, 1, NOW, _signTransfer(OWNER_KEY, ID, vm.addr(201), 1, NOW));
        assertTrue(studies.ownerKindOf(ID) == IStudies.OwnerKind.Own);
    }

    /// The lineage of a de-identified copy: signed, in an event, and without the salt nobody can tell whose copy it is.
    function testFuzz_aDerivedStudyNamesItsOriginalToWhoKnowsTheSalt(bytes32 salt) public {
        bytes32 derivedFrom = keccak256(bytes.concat(salt, ID));
        bytes memory signature = _signHash(OWNER_KEY, _defineHash("copy", owner, alice, false, derivedFrom, NOW));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        studies.defineStudy("copy", owner, false, ID, NOW, signature);
        vm.expectEmit(true, true, false, true, address(studies));
        emit IStudies.StudyDerived("copy", alice, derivedFrom);
        vm.prank(alice);
        studies.defineStudy("copy", owner, false, derivedFrom, NOW, signature);
    }

    /// A research group owns a study as anybody does; when its key is the sender too, it need not sign twice.
    function test_anOwnerThatSendsNeedNotSign() public {
        vm.prank(alice);
        studies.defineStudy(ID, alice, false, 0, NOW, "");
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, alice));
        studies.tombstone(ID, 1, NOW, "");
        vm.prank(alice);
        studies.tombstone(ID, 1, NOW, "");
        assertFalse(studies.isLiving(ID));
    }

    function test_anOperatorDefinesInTheNameOfItsSource() public {
        address operator = vm.addr(300);
        vm.prank(alice);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        sources.acceptOperator(alice);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(operator);
        studies.defineStudy(ID, owner, false, 0, NOW, signature);
        assertEq(studies.studySourceOf(ID), alice);
        assertEq(studies.stakeOf(alice), 1);
    }

    /// The runtime code holds nothing of the deployment, so that its hash can be compared with the published one.
    function test_theCodeIsTheSameEverywhere() public {
        vm.chainId(7);
        Registry other = new Registry(mallory);
        assertEq(address(other).codehash, address(studies).codehash);
    }
}
