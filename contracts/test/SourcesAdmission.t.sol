// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";
import {Registry} from "../solidity/Registry.sol";

contract SourcesAdmissionTest is Base {
    function test_RevertWhen_deployedWithoutAdmin() public {
        vm.expectRevert(ISources.ZeroAddress.selector);
        new Registry(address(0));
    }

    function testFuzz_RevertWhen_notAdmin(address caller) public {
        vm.assume(caller != admin);
        bytes memory refusal = abi.encodeWithSelector(ISources.NotAdmin.selector, caller);
        vm.prank(caller);
        vm.expectRevert(refusal);
        sources.admit(mallory);
        vm.prank(caller);
        vm.expectRevert(refusal);
        sources.suspend(alice);
        vm.prank(caller);
        vm.expectRevert(refusal);
        sources.reinstate(alice);
        vm.prank(caller);
        vm.expectRevert(refusal);
        sources.nominateAdmin(caller);
    }

    function test_RevertWhen_admittedTwiceOrZero() public {
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.AlreadyAdmitted.selector, alice));
        sources.admit(alice);
        vm.prank(admin);
        vm.expectRevert(ISources.ZeroAddress.selector);
        sources.admit(address(0));
    }

    function test_RevertWhen_suspendingAStrangerOrTwice() public {
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAdmitted.selector, mallory));
        sources.suspend(mallory);
        _suspend(alice);
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.AlreadySuspended.selector, alice));
        sources.suspend(alice);
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotSuspended.selector, bob));
        sources.reinstate(bob);
    }

    function testFuzz_RevertWhen_notNominated(address caller) public {
        vm.assume(caller != mallory);
        vm.prank(admin);
        sources.nominateAdmin(mallory);
        vm.prank(caller);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotNominated.selector, caller));
        sources.acceptAdmin();
    }

    function test_adminIsHandedOverInTwoSteps() public {
        vm.prank(admin);
        sources.nominateAdmin(mallory);
        assertEq(sources.admin(), admin);
        vm.prank(mallory);
        sources.acceptAdmin();
        assertEq(sources.admin(), mallory);
        assertEq(sources.nominee(), address(0));
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAdmin.selector, admin));
        sources.admit(mallory);
    }

    function test_suspensionStopsAndReinstatementRestores() public {
        _suspend(alice);
        assertFalse(sources.isActive(alice));
        assertEq(sources.sourceOf(alice), address(0));
        vm.prank(admin);
        sources.reinstate(alice);
        assertEq(sources.sourceOf(alice), alice);
    }

    /// A fault of published systems: a constructor by another name, callable by anybody. There is no such function here, and the
    /// admin was fixed by the creation code.
    function test_noFunctionSeizesTheAdministration() public {
        string[4] memory names = ["Sources(address)", "initialize(address)", "init()", "constructor()"];
        for (uint256 i = 0; i < names.length; ++i) {
            vm.prank(mallory);
            (bool done,) = address(sources).call(abi.encodeWithSelector(bytes4(keccak256(bytes(names[i]))), mallory));
            assertFalse(done);
        }
        assertEq(sources.admin(), admin);
    }
}
