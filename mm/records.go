package mm

import (
	"errors"
	"sync"

	"memfs/mm/pfn"
)

// recordBook keeps the bytes of the manager's own records: leaves, branches, inodes, names. They are part of the budget:
// for every page of them one frame is taken out of use (NT: nonpaged pool) and one page of commit is charged.
type recordBook struct {
	mu sync.Mutex
	// +checklocks:mu
	bytes uint64

	// syncing is held while frames are made record frames and their memory goes back to the host, so that none becomes
	// another page's in between. Taken before any other lock.
	syncing sync.Mutex
}

func pagesOf(bytes uint64) uint64 { return (bytes + PageSize - 1) / PageSize }

// chargeRecord adds n bytes of records: errGrow or StatusCommitmentLimit if their commit cannot be had.
func (s *System) chargeRecord(n int) error {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	pages := pagesOf(s.book.bytes+uint64(n)) - pagesOf(s.book.bytes)
	if pages > 0 {
		if err := s.commit.tryRecords(pages); err != nil {
			return err
		}
		s.balancer.kick()
	}
	s.book.bytes += uint64(n)
	return nil
}

// ChargeRecord adds n bytes of records that the caller keeps on the Go heap, such as an inode and its name.
// StatusCommitmentLimit if the budget has no room. It may do I/O: no lock may be held.
func (s *System) ChargeRecord(n int) error {
	for {
		err := s.chargeRecord(n)
		if !errors.Is(err, errGrow) {
			return err
		}
		if err := s.commit.grow(1); err != nil {
			return err
		}
	}
}

// ReleaseRecord takes n bytes of records away again.
func (s *System) ReleaseRecord(n int) {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	pages := pagesOf(s.book.bytes) - pagesOf(s.book.bytes-uint64(n))
	s.book.bytes -= uint64(n)
	if pages > 0 {
		s.commit.unchargeRecords(pages)
		s.balancer.kick()
	}
}

func (s *System) recordBytes() uint64 {
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	return s.book.bytes
}

// slotRecordBytes is what the page files' books take at their present size.
func (s *System) slotRecordBytes() uint64 {
	var n float64
	for _, f := range s.files.disks() {
		n += float64(f.laidOut()) * s.slotCost
	}
	if s.compressed != nil {
		n += float64(s.compressed.file.laidOut()) * compressedSlotBytes
	}
	return uint64(n)
}

// syncRecords makes the number of record frames match the bytes of records. Where no frame is to be had it stops; the
// balancer comes back to it.
func (s *System) syncRecords() {
	b := &s.book
	b.syncing.Lock()
	defer b.syncing.Unlock()
	want := pagesOf(s.recordBytes() + s.slotRecordBytes())
	if s.stopping.Load() {
		want = 0
	}
	for s.syncRecord(want) {
	}
}

// syncRecord takes or gives one record frame; false if nothing is to be done, or no frame is to be had.
// +checklocks:s.book.syncing
func (s *System) syncRecord(want uint64) bool {
	var taken, given pfn.Frame
	s.pfn.Lock()
	have := s.pfn.Records()
	switch {
	case have < want:
		taken = s.pfn.TakeRecord()
	case have > want:
		given = s.pfn.GiveRecord()
	}
	s.pfn.Unlock()
	switch {
	case have > want:
		s.takeBack(given)
		return true
	case taken != 0:
		s.lend(taken)
		return true
	case have < want:
		s.writer.kick()
	}
	return false
}
