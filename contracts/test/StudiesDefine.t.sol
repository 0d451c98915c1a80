// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IStudies} from "../solidity/interfaces/IStudies.sol";
import {Studies} from "../solidity/Studies.sol";

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

    function test_RevertWhen_deployedWithoutRegistry() public {
        vm.expectRevert(IStudies.ZeroValue.selector);
        new Studies(address(0));
    }

    function test_RevertWhen_zero() public {
        vm.prank(alice);
        vm.expectRevert(IStudies.ZeroValue.selector);
        studies.defineStudy(0, owner, NOW, "");
        vm.prank(alice);
        vm.expectRevert(IStudies.ZeroValue.selector);
        studies.defineStudy(ID, address(0), NOW, "");
    }

    function test_RevertWhen_theSenderIsNoSource() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, mallory, NOW);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotSource.selector, mallory));
        studies.defineStudy(ID, owner, NOW, signature);
        _suspend(alice);
        signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.NotSource.selector, alice));
        studies.defineStudy(ID, owner, NOW, signature);
    }

    function test_RevertWhen_defined() public {
        _defineStudy(alice, ID);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, bob, NOW);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.StudyExists.selector, ID));
        studies.defineStudy(ID, owner, NOW, signature);
    }

    function testFuzz_RevertWhen_late(uint64 deadline) public {
        vm.assume(deadline < NOW);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, deadline);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.DeadlinePassed.selector, deadline));
        studies.defineStudy(ID, owner, deadline, signature);
    }

    function testFuzz_RevertWhen_theOwnerDidNotSign(bytes memory signature) public {
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.BadOwnerSignature.selector, owner));
        studies.defineStudy(ID, owner, NOW, signature);
    }

    /// The signature names the source: another cannot use it.
    function test_RevertWhen_anotherSourceUsesTheSignature() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IStudies.BadOwnerSignature.selector, owner));
        studies.defineStudy(ID, owner, NOW, signature);
    }

    function test_RevertWhen_signedForAnotherChainOrContract() public {
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.chainId(4242);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.BadOwnerSignature.selector, owner));
        studies.defineStudy(ID, owner, NOW, signature);
        vm.chainId(31337);
        Studies other = new Studies(address(sources));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.BadOwnerSignature.selector, owner));
        other.defineStudy(ID, owner, NOW, signature);
    }

    function testFuzz_bothPartiesDefine(bytes32 id, uint256 key, uint64 ahead) public {
        vm.assume(id != 0);
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        uint64 deadline = NOW + ahead % 1_000_000;
        bytes memory signature = _signDefine(key, id, vm.addr(key), alice, deadline);
        vm.prank(alice);
        studies.defineStudy(id, vm.addr(key), deadline, signature);
        assertEq(studies.ownerOf(id), vm.addr(key));
        assertEq(studies.sourceOf(id), alice);
        assertEq(studies.stakeOf(alice), 1);
        assertEq(studies.stakeOf(bob), 0);
        assertEq(studies.stakeTotal(), 1);
    }

    function test_aContractCanBeTheOwner() public {
        Wallet wallet = new Wallet();
        bytes32 typeHash = keccak256("DefineStudy(bytes32 studyId,address owner,address source,uint64 deadline)");
        bytes32 message = keccak256(abi.encode(typeHash, ID, address(wallet), alice, NOW));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IStudies.BadOwnerSignature.selector, address(wallet)));
        studies.defineStudy(ID, address(wallet), NOW, "any");
        wallet.agree(keccak256(abi.encodePacked("\x19\x01", _domain(), message)));
        vm.prank(alice);
        studies.defineStudy(ID, address(wallet), NOW, "any");
        assertEq(studies.ownerOf(ID), address(wallet));
    }

    function test_anOperatorDefinesInTheNameOfItsSource() public {
        address operator = vm.addr(300);
        vm.prank(alice);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        sources.acceptOperator(alice);
        bytes memory signature = _signDefine(OWNER_KEY, ID, owner, alice, NOW);
        vm.prank(operator);
        studies.defineStudy(ID, owner, NOW, signature);
        assertEq(studies.sourceOf(ID), alice);
        assertEq(studies.stakeOf(alice), 1);
    }

    /// The runtime code holds nothing of the deployment, so that its hash can be compared with the published one.
    function test_theCodeIsTheSameEverywhere() public {
        vm.chainId(7);
        Studies other = new Studies(mallory);
        assertEq(address(other).codehash, address(studies).codehash);
    }
}
