package process

import "testing"

// TestShareAccess: two openings get along if each shares every right that the other one has, whichever comes first.
func TestShareAccess(t *testing.T) {
	const all = fileRead | fileExecute | fileWrite | fileDelete
	modeFor := func(rights uint32) (mode uint32) {
		if rights&(fileRead|fileExecute) != 0 {
			mode |= ShareRead
		}
		if rights&fileWrite != 0 {
			mode |= ShareWrite
		}
		if rights&fileDelete != 0 {
			mode |= ShareDelete
		}
		return mode
	}
	for rightsA := uint32(1); rightsA <= all; rightsA++ {
		for rightsB := uint32(1); rightsB <= all; rightsB++ {
			for modes := range uint32(64) {
				modeA, modeB := modes&7, modes>>3
				want := modeFor(rightsA)&^modeB == 0 && modeFor(rightsB)&^modeA == 0
				var s shareAccess
				s.add(1, rightsA, modeA)
				if got := s.admits(rightsB, modeB); got != want {
					t.Errorf("rights %x sharing %x, then rights %x sharing %x: %v", rightsA, modeA, rightsB, modeB, got)
				}
				s.add(1, fileRead, ShareAll) // of a third one that gets along with everybody who shares reading
				s.add(-1, fileRead, ShareAll)
				if s.add(-1, rightsA, modeA); s != (shareAccess{}) {
					t.Errorf("when all are closed: %+v", s)
				}
			}
		}
	}
}
