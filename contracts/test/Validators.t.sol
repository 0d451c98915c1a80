// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ValidatorsBase} from "./ValidatorsBase.sol";
import {Validators} from "../solidity/Validators.sol";
import {IValidators} from "../solidity/interfaces/IValidators.sol";

contract ValidatorsTest is ValidatorsBase {
    address[] private none;
    bytes[] private noProofs;

    function _sums(address[] memory list) private pure returns (uint256 sum) {
        for (uint256 i = 0; i < list.length; ++i) {
            sum += uint160(list[i]);
        }
    }

    // ---- the first block

    function test_theStateOfTheFirstBlockIsReadAsItWasWritten() public view {
        assertEq(validators.registry(), address(sources));
        assertEq(validators.epochBlocks(), EPOCH);
        assertEq(validators.seats(), SEATS);
        assertEq(validators.stakeCap(), CAP);
        assertEq(validators.lastEpoch(), 0);
        address[] memory sites = validators.getSites();
        assertEq(sites.length, SITES);
        for (uint256 i = 0; i < SITES; ++i) {
            assertEq(sites[i], _site(i));
            address[] memory keys = validators.keysOf(_site(i));
            assertEq(keys.length, KEYS);
            for (uint256 k = 0; k < KEYS; ++k) {
                assertEq(keys[k], _node(i, k));
                assertEq(validators.siteOf(keys[k]), _site(i));
            }
        }
        assertEq(validators.getValidators().length, SEATS);
        assertEq(validators.getValidators()[9], _node(3, 1));
    }

    function test_theFirstRollKeepsTheListOfTheFirstBlockWhileNobodyHasStake() public {
        address[] memory before = validators.getValidators();
        _toEpoch(1);
        assertTrue(validators.roll());
        assertEq(keccak256(abi.encode(validators.getValidators())), keccak256(abi.encode(before)));
    }

    function test_RevertWhen_thereIsNoRegistryYet() public {
        address nowhere = address(0x1234);
        _found(nowhere);
        _toEpoch(1);
        vm.expectRevert(abi.encodeWithSelector(IValidators.RegistryMissing.selector, nowhere));
        validators.roll();
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.RegistryMissing.selector, nowhere));
        validators.register(none, noProofs);
        assertEq(validators.getValidators().length, SEATS);
    }

    function test_sitesOfTheFirstBlockHaveSeatsBeforeTheyAreAdmitted() public {
        _found(address(sources));
        vm.store(address(validators), keccak256(abi.encode(uint256(6))), bytes32(uint256(uint160(mallory))));
        vm.store(address(validators), keccak256(abi.encode(mallory, uint256(7))), bytes32(uint256(1)));
        vm.store(
            address(validators),
            keccak256(abi.encode(keccak256(abi.encode(mallory, uint256(7))))),
            bytes32(uint256(uint160(_node(0, 0))))
        );
        _toEpoch(1);
        validators.roll();
        assertEq(validators.getValidators()[0], _node(0, 0));
    }

    // ---- epochs

    function testFuzz_anybodyRollsOnceInAnEpoch(address sender, uint256 height) public {
        height %= 1000 * EPOCH;
        vm.roll(height);
        vm.prank(sender);
        assertTrue(validators.roll() == (height >= EPOCH));
        assertEq(validators.lastEpoch(), height / EPOCH);
        _define(alice, 3);
        address[] memory list = validators.getValidators();
        assertFalse(validators.roll());
        (uint64 credited,) = validators.standingOf(alice);
        assertEq(credited, 0);
        assertEq(_sums(validators.getValidators()), _sums(list));
    }

    function test_seatsFollowStakeAtTheBorderAndNotBefore() public {
        assertEq(_seatsOf(_site(3)), 2);
        _define(_site(3), 12);
        vm.roll(2 * EPOCH - 1);
        validators.roll();
        // 13 of 16: more than it may have, so that the others share seven.
        assertEq(_seatsOf(_site(3)), 3);
        assertEq(_seatsOf(alice), 3);
        assertEq(_seatsOf(bob), 2);
        assertEq(_seatsOf(_site(2)), 2);
        _define(bob, 20);
        validators.roll();
        assertEq(_seatsOf(bob), 2);
        _toEpoch(2);
        validators.roll();
        assertEq(_seatsOf(bob), 3);
        assertEq(_seatsOf(_site(3)), 3);
    }

    function testFuzz_onlyTheCapIsCreditedInAnEpochAndTheRestNever(uint8 first, uint8 second) public {
        uint256 a = uint256(first) % 80;
        uint256 b = uint256(second) % 80;
        _define(alice, a);
        _toEpoch(1);
        validators.roll();
        _define(alice, b);
        _toEpoch(2);
        validators.roll();
        (uint64 credited, uint64 seen) = validators.standingOf(alice);
        assertEq(credited, (a < CAP ? a : CAP) + (b < CAP ? b : CAP));
        assertEq(seen, a + b);
        _toEpoch(9);
        validators.roll();
        (uint64 later,) = validators.standingOf(alice);
        assertEq(later, credited);
    }

    // ---- keys

    function test_aSiteReplacesItsKeysWhichCountFromTheNextRollOn() public {
        vm.expectEmit(true, true, true, true, address(validators));
        (address[] memory keys,) = _keys(900, 2, alice);
        emit IValidators.KeysRegistered(alice, keys);
        _register(alice, 900, 2);
        assertEq(validators.siteOf(_node(0, 0)), address(0));
        assertEq(validators.siteOf(vm.addr(901)), alice);
        assertEq(validators.getValidators()[0], _node(0, 0));
        _toEpoch(1);
        validators.roll();
        // Eleven keys still fill ten seats.
        assertEq(validators.getValidators()[0], vm.addr(900));
        assertEq(_seatsOf(alice), 2);
        assertEq(validators.getValidators().length, SEATS);
    }

    function test_whereKeysLackThereAreFewerSeats() public {
        _register(alice, 900, 1);
        _toEpoch(1);
        validators.roll();
        // With ten seats three each would be 1 + 3 + 3 + 3, and that is ten.
        assertEq(validators.getValidators().length, 10);
        _register(bob, 910, 1);
        _toEpoch(2);
        validators.roll();
        // Below ten seats nobody has three: 1 + 1 + 2 + 2 is less than seven, and below seven nobody has two.
        assertEq(validators.getValidators().length, 4);
    }

    function test_aNewSiteRegistersAndAnOldOneWithdraws() public {
        _enrol(500);
        _register(vm.addr(500), 900, 3);
        assertEq(validators.getSites().length, 5);
        vm.prank(alice);
        validators.register(none, noProofs);
        assertEq(validators.getSites().length, 4);
        assertEq(validators.getSites()[0], bob);
        assertEq(validators.getValidators()[0], _node(0, 0));
        _toEpoch(1);
        validators.roll();
        assertEq(validators.getValidators()[0], _node(1, 0));
        assertEq(_seatsOf(vm.addr(500)), 2);
        // Who is no site withdraws without effect.
        vm.prank(alice);
        validators.register(none, noProofs);
        assertEq(validators.getSites().length, 4);
    }

    function testFuzz_RevertWhen_theCallerIsNoActiveSource(address caller) public {
        vm.assume(!sources.isActive(caller));
        (address[] memory keys, bytes[] memory proofs) = _keys(900, 1, caller);
        vm.prank(caller);
        vm.expectRevert(abi.encodeWithSelector(IValidators.NotActive.selector, caller));
        validators.register(keys, proofs);
    }

    function test_RevertWhen_anOperatorOrASuspendedSourceRegisters() public {
        address operator = _addOperator(alice, 300);
        (address[] memory keys, bytes[] memory proofs) = _keys(900, 1, operator);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(IValidators.NotActive.selector, operator));
        validators.register(keys, proofs);
        _suspend(bob);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(IValidators.NotActive.selector, bob));
        validators.register(keys, proofs);
    }

    function test_RevertWhen_theKeyIsAnothersOrNamedTwice() public {
        (address[] memory keys, bytes[] memory proofs) = _keys(_nodeKey(1, 0), 1, alice);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.KeyInUse.selector, _node(1, 0), bob));
        validators.register(keys, proofs);
        (keys, proofs) = _keys(900, 2, alice);
        (keys[1], proofs[1]) = (keys[0], proofs[0]);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.KeyInUse.selector, keys[0], alice));
        validators.register(keys, proofs);
        assertEq(validators.siteOf(_node(0, 0)), alice);
    }

    function test_RevertWhen_theKeyDidNotAgree() public {
        // What it signed for one site is nothing to another.
        (address[] memory keys, bytes[] memory proofs) = _keys(900, 1, bob);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.BadProof.selector, keys[0]));
        validators.register(keys, proofs);
        proofs[0] = "";
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.BadProof.selector, keys[0]));
        validators.register(keys, proofs);
        keys[0] = address(0);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.BadProof.selector, address(0)));
        validators.register(keys, proofs);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.ProofsDiffer.selector, 1, 0));
        validators.register(keys, noProofs);
        (keys, proofs) = _keys(900, 17, alice);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IValidators.TooManyKeys.selector, 17));
        validators.register(keys, proofs);
    }

    // ---- the registry's word

    function test_aSuspendedSiteLosesItsSeatsAtTheNextRoll() public {
        _suspend(bob);
        assertEq(validators.getValidators().length, SEATS);
        _toEpoch(1);
        vm.expectEmit(true, true, true, true, address(validators));
        emit IValidators.SiteRemoved(bob);
        validators.roll();
        // Of three sites all have the same.
        assertEq(validators.getValidators().length, 9);
        assertEq(_seatsOf(bob), 0);
        assertEq(validators.keysOf(bob).length, 0);
        assertEq(validators.siteOf(_node(1, 0)), address(0));
        vm.prank(admin);
        sources.reinstate(bob);
        _toEpoch(2);
        validators.roll();
        assertEq(validators.getSites().length, 3);
        _register(bob, _nodeKey(1, 0), 3);
        _toEpoch(3);
        validators.roll();
        assertEq(validators.getSites()[3], bob);
        assertEq(validators.getValidators().length, SEATS);
    }

    function test_theLastIsNeverRemovedNorWithdraws() public {
        for (uint256 i = 0; i < 3; ++i) {
            _suspend(_site(i));
        }
        _toEpoch(1);
        validators.roll();
        assertEq(validators.getSites().length, 1);
        assertEq(validators.getValidators().length, KEYS);
        vm.prank(_site(3));
        vm.expectRevert(abi.encodeWithSelector(IValidators.LastSite.selector, _site(3)));
        validators.register(none, noProofs);
        _suspend(_site(3));
        _toEpoch(2);
        assertTrue(validators.roll());
        assertEq(validators.getValidators().length, KEYS);
        assertEq(_seatsOf(_site(3)), KEYS);
    }

    function test_asManySitesAsThereCanBeRollWithinABlock() public {
        for (uint256 i = SITES; i < validators.SITES_MAX(); ++i) {
            _enrol(5000 + i);
            _register(vm.addr(5000 + i), 100_000 + 100 * i, validators.KEYS_MAX());
        }
        _enrol(4999);
        (address[] memory keys, bytes[] memory proofs) = _keys(99_000, 1, vm.addr(4999));
        vm.prank(vm.addr(4999));
        vm.expectRevert(IValidators.TooManySites.selector);
        validators.register(keys, proofs);
        vm.store(address(validators), bytes32(uint256(2)), bytes32(validators.SEATS_MAX()));
        for (uint256 i = 0; i < SITES; ++i) {
            _define(_site(i), 1 + i);
        }
        // And half of them are removed with all their keys.
        for (uint256 i = SITES; i < 18; ++i) {
            _suspend(vm.addr(5000 + i));
        }
        _toEpoch(1);
        uint256 gas = gasleft();
        validators.roll();
        gas -= gasleft();
        require(gas < 10_000_000, "a roll costs too much");
        assertEq(validators.getSites().length, 18);
        assertEq(validators.getValidators().length, 64);
        gas = gasleft();
        validators.getValidators();
        gas -= gasleft();
        require(gas < 500_000, "reading the list costs too much");
    }
}
