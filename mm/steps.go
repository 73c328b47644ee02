package mm

import "time"

// The daemons a step at a time, for a System that was not started: the same steps on the same machine do the same twice.

// BalanceStep is what the balance set manager does once a second: the lists' clock goes on, records take and give frames,
// and what page files do not need goes back to their disks. The trimmer and the writer have to be stepped.
func (s *System) BalanceStep() {
	s.pfn.Lock()
	s.pfn.Tick()
	s.pfn.Unlock()
	s.pressure.average(time.Now())
	s.giveBackSlots()
	s.balance()
}

// balance matches the books to what there is.
func (s *System) balance() {
	_ = s.settleCompression()
	s.sweepCombined()
	s.syncRecords()
}

// TrimStep is what the trimmer does when it is woken: refused ranges leave the host, processes give pages if frames are
// short, files give what is too much by their own limits, and the system cache's working set gives its oldest views until it is within its limits. It returns the pages that
// left.
func (s *System) TrimStep() (moved uint64) {
	s.forgetRefused()
	moved = s.balanceSpaces()
	own, _, _ := s.trimOwn(0, ownTrims, s.stopping.Load)
	pages, _ := s.trimToLimits(false, s.stopping.Load) // an error is the host's trouble
	return moved + own + pages
}

// WriteStep is what the modified page writer does when it is woken: as long as pages are due, for their number, for want of
// frames or for their age, a cluster; pages that are too much by the limits of their files leave memory. It returns the pages
// that it wrote.
func (s *System) WriteStep() (written uint64, err error) {
	s.evictOver()
	for {
		age, due := s.writeDue()
		if !due {
			return written, nil
		}
		n, err := s.writeCluster(age)
		written += n
		for s.migrate() > 0 {
		}
		if n == 0 || err != nil {
			return written, err
		}
	}
}

// ZeroStep is what the zero-page thread does at a time. It returns how many frames it zeroed.
func (s *System) ZeroStep() uint64 { return s.zeroStep() }

// WipeStep overwrites slots that were freed, some at a time. It returns how many.
func (s *System) WipeStep() uint64 { return s.wipeStep() }
