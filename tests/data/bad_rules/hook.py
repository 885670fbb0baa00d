def hook(_facts):
    return True


number = 7
