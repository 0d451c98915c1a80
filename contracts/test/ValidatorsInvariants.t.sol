// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ValidatorsBase} from "./ValidatorsBase.sol";

/// @dev Sites come, go, take others' keys, are suspended and gain stake at random; after each step the list is looked at.
contract ValidatorsHandler is ValidatorsBase {
    uint256 private constant MANY = 7;
    uint256 private height = 1;
    bytes32 private lastList;
    uint256 private lastRolled;
    bool public changedOutsideRoll;
    bool public rolledTwice;
    bool public strangerRegistered;
    bool public thirdReached;

    constructor() {
        ValidatorsBase.setUp();
        for (uint256 i = SITES; i < MANY; ++i) {
            _enrol(_siteKey(i));
        }
        lastList = _list();
    }

    function setUp() public override {}

    function _list() private view returns (bytes32) {
        return keccak256(abi.encode(validators.getValidators()));
    }

    modifier keepsList() {
        _;
        if (_list() != lastList) changedOutsideRoll = true;
    }

    function register(uint256 who, uint256 first, uint256 count) external keepsList {
        // One more than there are sites: mallory, whom nobody admitted.
        who %= MANY + 1;
        address site = who == MANY ? mallory : _site(who);
        (address[] memory keys, bytes[] memory proofs) = _keys(30_000 + first % 24, count % 5, site);
        vm.prank(site);
        try validators.register(keys, proofs) {
            if (who == MANY) strangerRegistered = true;
        } catch {}
    }

    function toggleSuspension(uint256 who) external keepsList {
        address site = _site(who % MANY);
        vm.prank(admin);
        try sources.suspend(site) {}
        catch {
            vm.prank(admin);
            sources.reinstate(site);
        }
    }

    function gain(uint256 who, uint256 count) external keepsList {
        address site = _site(who % MANY);
        if (sources.isActive(site)) _define(site, count % 9);
    }

    function pass(uint256 blocks) external keepsList {
        height += blocks % (2 * EPOCH);
        vm.roll(height);
    }

    function roll() external {
        // Some test runners set the height anew for each call.
        vm.roll(height);
        uint256 epoch = height / EPOCH;
        bool rolled = validators.roll();
        if (rolled && epoch == lastRolled) rolledTwice = true;
        if (!rolled && _list() != lastList) changedOutsideRoll = true;
        if (!rolled) return;
        lastRolled = epoch;
        lastList = _list();
        address[] memory sites = validators.getSites();
        for (uint256 i = 0; i < sites.length; ++i) {
            if (sites.length >= 4 && 3 * _seatsOf(sites[i]) >= validators.getValidators().length) thirdReached = true;
        }
    }

    function checkList() external view {
        address[] memory list = validators.getValidators();
        assertTrue(list.length > 0 && list.length <= SEATS);
        for (uint256 i = 0; i < list.length; ++i) {
            assertTrue(list[i] != address(0));
            for (uint256 j = 0; j < i; ++j) {
                assertTrue(list[i] != list[j]);
            }
        }
    }

    function checkKeys() external view {
        address[] memory sites = validators.getSites();
        assertTrue(sites.length > 0);
        for (uint256 i = 0; i < MANY; ++i) {
            address[] memory keys = validators.keysOf(_site(i));
            uint256 listed;
            for (uint256 s = 0; s < sites.length; ++s) {
                if (sites[s] == _site(i)) ++listed;
            }
            assertEq(listed, keys.length == 0 ? 0 : 1);
            for (uint256 k = 0; k < keys.length; ++k) {
                assertEq(validators.siteOf(keys[k]), _site(i));
            }
        }
    }

    function checkCredit() external view {
        for (uint256 i = 0; i < MANY; ++i) {
            (uint64 credited, uint64 seen) = validators.standingOf(_site(i));
            assertTrue(credited <= seen && seen <= studies.stakeOf(_site(i)));
            assertTrue(credited <= CAP * validators.lastEpoch());
        }
    }
}

contract ValidatorsInvariantsTest {
    ValidatorsHandler internal handler;

    function setUp() public {
        handler = new ValidatorsHandler();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](7);
        targets[0].selectors[0] = ValidatorsHandler.register.selector;
        targets[0].selectors[1] = ValidatorsHandler.toggleSuspension.selector;
        targets[0].selectors[2] = ValidatorsHandler.gain.selector;
        targets[0].selectors[3] = ValidatorsHandler.pass.selector;
        // Twice: without them nothing comes of the rest.
        targets[0].selectors[4] = ValidatorsHandler.roll.selector;
        targets[0].selectors[5] = ValidatorsHandler.roll.selector;
        targets[0].selectors[6] = ValidatorsHandler.register.selector;
    }

    function invariant_theListIsUniqueAndNeitherEmptyNorTooLong() external view {
        handler.checkList();
    }

    function invariant_theListChangesOnceInAnEpochByARoll() external view {
        require(!handler.changedOutsideRoll() && !handler.rolledTwice(), "the list changed between rolls");
    }

    function invariant_ofFourSitesNoneHasAThird() external view {
        require(!handler.thirdReached(), "a site has a third");
    }

    function invariant_keysAndSitesAgree() external view {
        handler.checkKeys();
    }

    function invariant_creditIsCapped() external view {
        handler.checkCredit();
    }

    function invariant_onlySourcesRegister() external view {
        require(!handler.strangerRegistered(), "a stranger registered");
    }
}
