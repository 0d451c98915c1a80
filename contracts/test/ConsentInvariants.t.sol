// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";

/// @dev Two studies, three owner keys of which one at a time owns, three grantees, and everybody trying everything: right and
/// wrong signatures, replays of all that was ever signed, time, transfers, suspensions, emergencies. What the owners' words amount
/// to is kept beside, in the plainest way.
contract ConsentHandler is Base {
    struct Signed {
        IConsent.Allowance allowance;
        bytes signature;
        uint256 key;
    }

    /// @dev The newest word of an owner about (study, grantee).
    struct Word {
        uint32 seq;
        bool allowed;
        IConsent.Allowance allowance;
    }

    bytes32[2] internal ids = [keccak256("first"), keccak256("second")];
    address[3] internal grantees = [bob, alice, mallory];
    mapping(bytes32 => uint256) internal _ownerKey;
    mapping(bytes32 => bool) internal _dead;
    mapping(bytes32 => uint32) internal _studySeq;
    mapping(bytes32 => mapping(address => Word)) internal _words;
    mapping(bytes32 => mapping(address => uint64)) internal _emergencies;
    Signed[] internal _signed;
    uint64 internal _time = NOW;
    string public broken;
    uint256 public allowed;
    uint256 public replayed;

    constructor() {
        Base.setUp();
        for (uint256 i = 0; i < 2; ++i) {
            _ownerKey[ids[i]] = OWNER_KEY;
            _defineStudy(alice, ids[i]);
        }
    }

    function setUp() public override {}

    function request(uint256 study, uint256 who) external {
        vm.warp(_time);
        vm.prank(grantees[who % 3]);
        try consent.request(ids[study % 2], IConsent.Mode.Full, 1, 0, PGP_KEY) {} catch {}
    }

    function allow(uint256 study, uint256 who, uint256 key, uint32 ahead, uint64 from, uint64 length) external {
        vm.warp(_time);
        IConsent.Allowance memory a = _allowance(ids[study % 2], grantees[who % 3], 0);
        // Mostly the next number, mostly the owner's key, and not always sent.
        a.seq = _words[a.studyId][a.grantee].seq + (ahead % 4);
        a.notBefore = _time - 5 + from % 10;
        a.notAfter = a.notBefore + length % 50;
        a.mode = length % 3 == 0 ? IConsent.Mode.Preview : IConsent.Mode.Full;
        a.deadline = _time + from % 40;
        uint256 signer = key % 4 == 0 ? OWNER_KEY + key % 3 : _ownerKey[a.studyId];
        _signed.push(Signed(a, _signAllow(signer, a), signer));
        if (ahead % 5 != 0) _play(_signed.length - 1);
    }

    function replay(uint256 which) external {
        vm.warp(_time);
        if (_signed.length == 0) return;
        ++replayed;
        _play(which % _signed.length);
    }

    /// @dev Someone changes a field of what was signed and sends it.
    function forge(uint256 which, uint256 study, uint256 who, uint32 seq) external {
        vm.warp(_time);
        if (_signed.length == 0) return;
        Signed storage s = _signed[which % _signed.length];
        IConsent.Allowance memory a = s.allowance;
        (a.studyId, a.grantee, a.seq) = (ids[study % 2], grantees[who % 3], seq);
        a.notAfter = type(uint64).max;
        a.deadline = type(uint64).max;
        try consent.allow(a, s.signature) {
            broken = "a forged allow was accepted";
        } catch {}
    }

    function revoke(uint256 study, uint256 who, uint256 key, uint32 ahead) external {
        vm.warp(_time);
        (bytes32 id, address grantee) = (ids[study % 2], grantees[who % 3]);
        uint32 seq = _words[id][grantee].seq + ahead % 3;
        uint256 signer = key % 4 == 0 ? OWNER_KEY + key % 3 : _ownerKey[id];
        try consent.revoke(id, grantee, seq, _time, _signRevoke(signer, id, grantee, seq, _time)) {
            _hear(id, grantee, seq, signer);
            _words[id][grantee].allowed = false;
        } catch {}
    }

    function deny(uint256 study, uint256 who, uint256 key) external {
        vm.warp(_time);
        (bytes32 id, address grantee) = (ids[study % 2], grantees[who % 3]);
        uint32 seq = _words[id][grantee].seq + 1;
        uint256 signer = key % 4 == 0 ? OWNER_KEY + key % 3 : _ownerKey[id];
        try consent.deny(id, grantee, 1, 0, seq, _time, _signDeny(signer, id, grantee, 1, seq, _time)) {
            _hear(id, grantee, seq, signer);
        } catch {}
    }

    function transfer(uint256 study, uint256 to, uint256 key) external {
        vm.warp(_time);
        bytes32 id = ids[study % 2];
        (uint256 next, uint32 seq) = (OWNER_KEY + to % 3, _studySeq[id] + 1);
        uint256 signer = key % 3 == 0 ? OWNER_KEY + key % 7 % 3 : _ownerKey[id];
        bytes memory signature = _signTransfer(signer, id, vm.addr(next), seq, _time);
        try studies.transfer(id, vm.addr(next), false, seq, _time, signature) {
            if (signer != _ownerKey[id]) broken = "a stranger transferred";
            (_ownerKey[id], _studySeq[id]) = (next, seq);
        } catch {}
    }

    function tombstone(uint256 study, uint256 chance) external {
        vm.warp(_time);
        bytes32 id = ids[study % 2];
        if (chance % 16 != 0 || _dead[id]) return;
        uint32 seq = ++_studySeq[id];
        studies.tombstone(id, seq, _time, _signTombstone(_ownerKey[id], id, seq, _time));
        _dead[id] = true;
    }

    function breakGlass(uint256 study, uint256 who, uint64 length) external {
        vm.warp(_time);
        address source = grantees[who % 3];
        uint64 until = _time + length % 40;
        vm.prank(source);
        try consent.breakGlass(_emergency(ids[study % 2], until), "") {
            if (source == mallory) broken = "a stranger broke the glass";
            _emergencies[ids[study % 2]][source] = until;
        } catch {}
    }

    function toggleSuspension(uint256 who, uint256 chance) external {
        if (chance % 4 != 0) return;
        vm.prank(admin);
        try sources.suspend(grantees[who % 2]) {}
        catch {
            vm.prank(admin);
            sources.reinstate(grantees[who % 2]);
        }
    }

    function passTime(uint64 by) external {
        _time += by % 30;
        vm.warp(_time);
    }

    function _play(uint256 which) internal {
        Signed storage s = _signed[which];
        IConsent.Allowance memory a = s.allowance;
        try consent.allow(a, s.signature) {
            if (_time > a.deadline) broken = "accepted after the deadline";
            _hear(a.studyId, a.grantee, a.seq, s.key);
            _words[a.studyId][a.grantee].allowed = true;
            _words[a.studyId][a.grantee].allowance = a;
            ++allowed;
        } catch {}
    }

    function _hear(bytes32 id, address grantee, uint32 seq, uint256 key) internal {
        if (_dead[id]) broken = "the owner of a dead study was heard";
        if (vm.addr(key) != vm.addr(_ownerKey[id])) broken = "another than the owner was heard";
        if (seq <= _words[id][grantee].seq) broken = "an old word was heard";
        _words[id][grantee].seq = seq;
    }

    function check() external {
        vm.warp(_time);
        require(bytes(broken).length == 0, broken);
        for (uint256 i = 0; i < 2; ++i) {
            for (uint256 j = 0; j < 3; ++j) {
                _checkPair(ids[i], grantees[j]);
            }
        }
    }

    function _checkPair(bytes32 id, address grantee) internal view {
        Word storage word = _words[id][grantee];
        IConsent.Allowance storage a = word.allowance;
        bool open = !_dead[id] && !sources.isSuspended(grantee);
        bool granted = open && word.allowed && a.notBefore <= _time && _time <= a.notAfter;
        bool emergency = open && _time <= _emergencies[id][grantee];
        (IConsent.Mode mode, bool isEmergency,) = consent.isAllowed(id, 0, grantee, 0);
        IConsent.Mode expected = granted ? a.mode : IConsent.Mode.None;
        if (emergency && expected != IConsent.Mode.Full) {
            require(isEmergency && mode == IConsent.Mode.Full, "the emergency is not told");
        } else {
            require(!isEmergency && mode == expected, "access is not what the owner signed");
        }
        require(consent.getGrant(id, grantee).seq == word.seq, "another number");
    }
}

contract ConsentInvariantsTest {
    ConsentHandler internal handler;

    function setUp() public {
        handler = new ConsentHandler();
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
        bytes4[13] memory all = [
            ConsentHandler.request.selector,
            // Twice: most of what can go wrong is about them.
            ConsentHandler.allow.selector,
            ConsentHandler.allow.selector,
            ConsentHandler.replay.selector,
            ConsentHandler.forge.selector,
            ConsentHandler.revoke.selector,
            ConsentHandler.revoke.selector,
            ConsentHandler.deny.selector,
            ConsentHandler.transfer.selector,
            ConsentHandler.tombstone.selector,
            ConsentHandler.breakGlass.selector,
            ConsentHandler.toggleSuspension.selector,
            ConsentHandler.passTime.selector
        ];
        targets[0].addr = address(handler);
        targets[0].selectors = new bytes4[](all.length);
        for (uint256 i = 0; i < all.length; ++i) {
            targets[0].selectors[i] = all[i];
        }
    }

    /// No sequence of calls by anyone grants access that the owner has not signed; revoked stays revoked until a newer allow.
    function invariant_accessIsWhatTheOwnerSignedLast() external {
        handler.check();
    }
}
