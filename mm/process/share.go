package process

import "memfs/mm"

// Share modes: what an opening of a file lets others do with it as long as it has a handle, and what they let it do. They hold
// among simulated processes; real programs share everything, as on Linux.

// The share modes of CreateFile.
const (
	ShareRead   = 1
	ShareWrite  = 2
	ShareDelete = 4
	ShareAll    = ShareRead | ShareWrite | ShareDelete
)

// sharedRights are the rights that a share mode is about, each at the place of its bit.
var sharedRights = [...]uint32{fileRead | fileExecute, fileWrite, fileDelete}

// shareAccess counts the openings of a file that have any of the shared rights (SHARE_ACCESS), and of these those that have
// and that share each of them.
type shareAccess struct {
	open        int
	has, shares [len(sharedRights)]int
}

// admits says whether an opening with rights and a share mode gets along with all others (IoCheckShareAccess).
func (s *shareAccess) admits(rights, mode uint32) bool {
	for i, r := range sharedRights {
		if rights&r != 0 && s.shares[i] < s.open || s.has[i] > 0 && mode&(1<<i) == 0 {
			return false
		}
	}
	return true
}

// add counts n more such openings.
func (s *shareAccess) add(n int, rights, mode uint32) {
	s.open += n
	for i, r := range sharedRights {
		if rights&r != 0 {
			s.has[i] += n
		}
		if mode&(1<<i) != 0 {
			s.shares[i] += n
		}
	}
}

// participates says that an opening takes part in sharing at all: one that only asks for attributes does not.
func participates(rights uint32) bool {
	return rights&(fileRead|fileExecute|fileWrite|fileDelete) != 0
}

// shareable says whether a file can be opened with rights and a share mode. SharingViolation.
func (m *Machine) shareable(seg *mm.Segment, rights, mode uint32) error {
	m.objects.Lock()
	defer m.objects.Unlock()
	return m.shareableLocked(seg, rights, mode)
}

// +checklocks:m.objects
func (m *Machine) shareableLocked(seg *mm.Segment, rights, mode uint32) error {
	if s := m.shares[seg]; s != nil && participates(rights) && !s.admits(rights, mode) {
		return SharingViolation
	}
	return nil
}

// takeShare has an opening take part, until dropShare. SharingViolation.
func (f *openFile) takeShare(rights, mode uint32) error {
	m, seg := f.machine, f.Segment()
	m.objects.Lock()
	defer m.objects.Unlock()
	if err := m.shareableLocked(seg, rights, mode); err != nil {
		return err
	}
	if !participates(rights) {
		return nil
	}
	s := m.shares[seg]
	if s == nil {
		s = new(shareAccess)
		m.shares[seg] = s
	}
	s.add(1, rights, mode)
	f.rights, f.mode, f.sharing = rights, mode, true
	return nil
}

// dropShare ends what takeShare began.
func (f *openFile) dropShare() {
	m, seg := f.machine, f.Segment()
	m.objects.Lock()
	defer m.objects.Unlock()
	if !f.sharing {
		return
	}
	f.sharing = false
	s := m.shares[seg]
	if s.add(-1, f.rights, f.mode); s.open == 0 {
		delete(m.shares, seg)
	}
}

// executing says whether there are image sections over a file: it is a program that runs, or a library of one.
func (m *Machine) executing(seg *mm.Segment) bool {
	m.images.Lock()
	defer m.images.Unlock()
	return m.areas[seg] != nil
}
