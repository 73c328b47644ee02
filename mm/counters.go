package mm

import (
	"sync/atomic"

	"memfs/mm/pfn"
)

// counters are the live figures behind Counters. A part of some is in the tallies.
type counters struct {
	pageFaults, demandZeroFaults, transitionFaults, hardFaults, collidedFaults, holeReads, writeCopies atomic.Uint64
	pageReads, pagesInput, pageWrites, pagesOutput, bouncedReads, directWrites                         atomic.Uint64
	viewsMapped, viewsTrimmed, pagesTrimmed, pagesFreed, laundered, invalidations                      atomic.Uint64
	pagesReadAhead, readAheadHits, pagesCombined, pagesLost                                            atomic.Uint64
	pagesCompressed, pagesMigrated                                                                     atomic.Uint64
	zeroedPages, checksumErrors, readErrors, writeErrors, refusedWrites                                atomic.Uint64
}

// Snapshot copies the figures.
func (s *System) Snapshot() Snapshot {
	s.pfn.Lock()
	c := s.pfn.Counts()
	pages, views, limit := s.hostPages()+s.cache.leaving+s.cache.foreign, s.cache.views, s.cache.most(false)
	locked := s.locked
	combined, sharers := s.combined.live, s.combined.refs
	budget, frames := s.budget, s.pfn.Frames()
	resource := s.resource()
	var parts tally
	for i := range s.tallies {
		t := &s.tallies[i]
		parts.soft += t.soft
		parts.holes += t.holes
		parts.aheadHits += t.aheadHits
		parts.views += t.views
	}
	s.pfn.Unlock()
	n := &s.n
	snap := Snapshot{
		Budget: budget, MaxMemory: s.config.MaxMemory, Resource: resource,
		Frames: frames, Retired: c.Retired, Zeroed: c.Zeroed, Free: c.Free, Standby: c.Standby, Modified: c.Modified,
		ModifiedNoWrite: c.ModifiedNoWrite, Transition: c.Transition, Active: c.Active, Bad: c.Bad, RecordFrames: c.Records,
		HostPages: pages, HostLimit: limit, Views: views, Locked: locked,
		RecordBytes: s.recordBytes(),
		Counters: Counters{
			PageFaults: n.pageFaults.Load() + parts.soft, DemandZeroFaults: n.demandZeroFaults.Load(),
			TransitionFaults: n.transitionFaults.Load() + parts.soft, HardFaults: n.hardFaults.Load(),
			WriteCopies:    n.writeCopies.Load(),
			CollidedFaults: n.collidedFaults.Load(), HoleReads: n.holeReads.Load() + parts.holes,
			PagesReadAhead: n.pagesReadAhead.Load(), ReadAheadHits: n.readAheadHits.Load() + parts.aheadHits,
			PageReads: n.pageReads.Load(), PagesInput: n.pagesInput.Load(),
			PageWrites: n.pageWrites.Load(), PagesOutput: n.pagesOutput.Load(),
			BouncedReads: n.bouncedReads.Load(), DirectWrites: n.directWrites.Load(),
			ViewsMapped: n.viewsMapped.Load() + parts.views, ViewsTrimmed: n.viewsTrimmed.Load(),
			PagesTrimmed: n.pagesTrimmed.Load(), PagesFreed: n.pagesFreed.Load(),
			Laundered: n.laundered.Load(), Invalidations: n.invalidations.Load(),
			Repurposed: c.Repurposed, PagesStolen: c.Stolen, PagesEmptied: c.Emptied, PagesLimited: c.Limited, ZeroedPages: n.zeroedPages.Load(),
			PagesCombined: n.pagesCombined.Load(), PagesLost: n.pagesLost.Load(),
			PagesCompressed: n.pagesCompressed.Load(), PagesMigrated: n.pagesMigrated.Load(),
			ChecksumErrors: n.checksumErrors.Load(), ReadErrors: n.readErrors.Load(), WriteErrors: n.writeErrors.Load(),
			RefusedWrites: n.refusedWrites.Load(),
		},
	}
	s.commit.mu.Lock()
	snap.Commit, snap.CommitPeak, snap.Counters.CommitRefusals = s.commit.charged, s.commit.peak, s.commit.refusals
	snap.FileCommit = s.commit.charged - s.commit.records
	snap.CommitLimit = s.commit.frames + s.commit.limitLocked()
	s.commit.mu.Unlock()
	snap.Combined, snap.CombinedSharers = combined, sharers
	snap.Guaranteed = s.guaranteed.Load()
	snap.Compressed = s.compressedInfo()
	snap.Some, snap.Full = s.pressure.info()
	for _, f := range s.files.disks() {
		snap.PageFiles = append(snap.PageFiles, f.info())
	}
	s.segMu.Lock()
	snap.Spaces = uint64(len(s.spaces))
	snap.Sections = uint64(len(s.segs)) - snap.Spaces
	if s.segs[s.combined.seg.id] != nil { // it is nobody's
		snap.Sections--
	}
	s.segMu.Unlock()
	return snap
}

// stateLetter is the letter of `map` for a page whose frame is in the state.
func stateLetter(s pfn.State) byte {
	switch s {
	case pfn.Active:
		return StateActive
	case pfn.Standby:
		return StateStandby
	case pfn.Modified:
		return StateModified
	case pfn.ModifiedNoWrite:
		return StateNoWrite
	default:
		return StateTransition
	}
}
